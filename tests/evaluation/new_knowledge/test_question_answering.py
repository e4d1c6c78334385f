import json
import re
from collections import Counter
from random import Random

import pytest
from asked import DATA, Answering, needs_data, run

from mm_lightning.errors import UserError
from mm_lightning.evaluation.new_knowledge.question_answering import Hotpot, Squad, qa_prompt

SQUAD_PROMPT = """\
Answer the question based on the given documents. Only give me the answer and do not output any other words.

The following are given documents.

Document 1:
Rollo led the Norse.

Document 2:
Paris is in France.

Answer the question based on the given documents. Only give me the answer and do not output any other words.

Question: Who led the Norse? Answer:"""

COLORS = ["red", "green", "blue", "black", "white"]


def paragraph(article, number):
    """A paragraph of its own length with one fact, the question for it, and its answer."""
    thing = f"thing{article}x{number}"
    color = COLORS[(article * 7 + number) % 5] + f"-{article}{number}"
    filler = "Nothing else is known of it. " * (1 + (article + number) % 3)
    return f"The color of {thing} is {color}. {filler}".strip(), f"What is the color of {thing}?", color


@pytest.fixture
def squad(tmp_path):
    """20 articles of 12 paragraphs, each with one answerable question and one that is not."""
    data = []
    for article in range(20):
        paragraphs = []
        for number in range(12):
            text, question, color = paragraph(article, number)
            answers = [{"text": color.upper(), "answer_start": 0}, {"text": color, "answer_start": 0}] * 2
            qas = [
                {"id": f"q{article}-{number}", "question": question, "answers": answers, "is_impossible": False},
                {"id": f"n{article}-{number}", "question": "Why?", "answers": [], "is_impossible": True},
            ]
            paragraphs.append({"context": text, "qas": qas})
        data.append({"title": f"article {article}", "paragraphs": paragraphs})
    (tmp_path / "squad").mkdir()
    (tmp_path / "squad" / "dev.json").write_text(json.dumps({"version": "v2.0", "data": data}))
    return tmp_path


@pytest.fixture
def hotpot(tmp_path):
    """60 questions, each with ten paragraphs, two of them supporting."""
    rows = []
    for n in range(60):
        titles = [f"title {n}-{k}" for k in range(10)]
        context = [[title, [f"The color of {title} is shade{n}-{k}.", " It is old."]] for k, title in enumerate(titles)]
        rows.append({
            "_id": f"h{n}", "question": f"What is the color of {titles[7]}?", "answer": f"shade{n}-7",
            "supporting_facts": [[titles[2], 0], [titles[7], 0]], "context": context,
        })  # fmt: skip
    (tmp_path / "hotpotqa").mkdir()
    (tmp_path / "hotpotqa" / "dev.json").write_text(json.dumps(rows))
    return tmp_path


def copying(prompt):
    """What the text says about the thing that is asked for."""
    thing = re.search(r"Question: What is the color of (.+)\? Answer:$", prompt)[1]
    return " " + re.search(rf"The color of {thing} is ([\w-]+)\.", prompt)[1]


def context_of(prompt):
    """The documents of a prompt."""
    whole = prompt.split("The following are given documents.\n\n")[1].split("\n\nAnswer the question based")[0]
    parts = re.split(r"(?:^|\n\n)Document (\d+):\n", whole)[1:]
    assert [int(number) for number in parts[::2]] == list(range(1, len(parts) // 2 + 1))
    return parts[1::2]


def test_the_prompt_is_the_published_one():
    assert qa_prompt(["Rollo led the Norse.", "Paris is in France."], "Who led the Norse?") == SQUAD_PROMPT


def test_a_model_that_copies_from_the_document_is_always_right(squad):
    records, rows = run(Squad(contexts=[1024, 3072], data_dir=str(squad), limit=50), copying)
    for length in (1024, 3072):
        assert rows[length, None, "accuracy"].value == 1
        assert rows[length, None, "accuracy"].count == 50
        assert rows[length, None, "accuracy_gold_alone"].value == 1
    assert len({record["question"] for record in records if record["group"]["length"] == 1024}) == 50


def test_texts_fill_their_length_and_never_more(squad):
    task = Squad(contexts=[1024, 2048, 4096], data_dir=str(squad), limit=40)
    records, rows = run(task, copying)
    for record in records:
        length = record["group"]["length"]
        used = 1 + len(record["prompt"].encode()) + 32
        assert record["tokens"] == used
        assert 0.9 * length <= used <= length
    assert rows[4096, None, "tokens"].value >= 0.97 * 4096


def test_a_text_is_its_paragraph_with_others_of_its_article_first(squad):
    records, _ = run(Squad(contexts=[1024], data_dir=str(squad), limit=60), copying)
    for record in records:
        article, number = map(int, re.fullmatch(r"q(\d+)-(\d+)", record["question"]).groups())
        text, question, color = paragraph(article, number)
        documents = context_of(record["prompt"])
        assert len(set(documents)) == len(documents) == record["documents"]
        assert documents[record["position"]] == text
        assert record["prompt"].count(question) == 1
        assert record["references"] == [color.upper(), color]
        before = len("".join(documents[: record["position"]])) + len(text) / 2
        assert record["depth"] == pytest.approx(before / len("".join(documents)), abs=1e-6)
        # a paragraph of the article is left out only where it does not fit in place of all others (numbers of
        # documents are taken to have three digits)
        others = [document for document in documents if f"thing{article}x" not in document]
        freed = record["tokens"] - sum(len(f"Document 10:\n{document}\n\n") for document in others)
        article_texts = [paragraph(article, n)[0] for n in range(12)]
        spare = 1024 - freed - 2 * len(documents)
        assert all(len(f"Document 100:\n{text}\n\n") > spare for text in article_texts if text not in documents)


def test_every_text_is_drawn_and_shuffled_by_itself(squad):
    records, _ = run(Squad(contexts=[3000], limit=8, data_dir=str(squad)), copying)
    far = []
    for record in records:
        own = record["question"].split("-")[0][1:]
        articles = re.findall(r"The color of thing(\d+)x", record["prompt"])
        is_far = [article != own for article in articles]
        assert is_far != sorted(is_far)
        far.append(set(re.findall(rf"The color of (thing(?!{own}x)\w+) is", record["prompt"])))
    assert min(map(len, far)) > 5
    assert not set.intersection(*far)


def test_a_constant_answer_is_right_as_often_as_it_is_true(squad):
    task = Squad(contexts=[1024], data_dir=str(squad), limit=240)
    records, rows = run(task, lambda prompt: "RED-13, blue-10 or black-16, but not white")
    assert rows[1024, None, "accuracy"].value == pytest.approx(3 / 240)
    assert rows[1024, None, "accuracy"].stderr == pytest.approx((3 / 240 * 237 / 240 / 239) ** 0.5)
    assert {r["question"] for r in records if r["scores"]["accuracy"]} == {"q1-3", "q1-0", "q1-6"}


def test_the_score_takes_any_reference_in_any_case(squad):
    task = Squad(contexts=[1024], data_dir=str(squad), limit=5)
    records, rows = run(task, lambda prompt: "It is " + copying(prompt).title() + ", no?")
    assert rows[1024, None, "accuracy"].value == 1
    assert [record["gold"][0]["found"] for record in records] == [1.0] * 5


def test_answers_are_spread_evenly_over_the_depth(squad):
    task = Squad(contexts=[2048], data_dir=str(squad), limit=240)
    records, rows = run(task, copying)
    fifths = Counter(int(5 * record["position"] / record["documents"]) for record in records)
    wide = {n: sum(int(5 * p / r["documents"]) == n for r in records for p in range(r["documents"])) for n in range(5)}
    whole = sum(wide.values())
    # as many as that fifth has of all places: chi-square far below the 0.05 level of 9.5 at four degrees of freedom
    chi = sum((fifths[n] - 240 * wide[n] / whole) ** 2 / (240 * wide[n] / whole) for n in range(5))
    assert chi < 3
    cells = [row for (_, depth, _), row in rows.items() if depth]
    assert sum(row.count for row in cells) == 240
    assert {depth for _, depth, _ in rows if depth} == {f"{n}-{n + 10}%" for n in range(0, 100, 10)}


def test_fewer_questions_are_the_first_of_more(squad):
    few, _ = run(Squad(contexts=[1024], data_dir=str(squad), limit=7), copying)
    many, _ = run(Squad(contexts=[1024], data_dir=str(squad), limit=20), copying)
    assert few == many[:7]
    other, _ = run(Squad(contexts=[1024], data_dir=str(squad), limit=7, seed=1), copying)
    assert [record["question"] for record in other] != [record["question"] for record in few]


def test_the_published_place_follows_from_the_number_of_documents(squad):
    records, _ = run(Squad(contexts=[2048], data_dir=str(squad), limit=60, gold_position="published"), copying)
    for record in records:
        assert record["documents"] % 10 == 0
        order = list(range(record["documents"]))
        Random(42).shuffle(order)
        assert record["position"] == order.index(0)
    assert len({record["position"] for record in records}) <= 2


def test_whether_the_answer_stands_elsewhere(squad):
    path = squad / "squad" / "dev.json"
    data = json.loads(path.read_text())
    hint = "Some say that RED-13 was seen here."  # the answer of q1-3
    data["data"][1]["paragraphs"].append({"context": hint, "qas": []})
    path.write_text(json.dumps(data))
    records, rows = run(Squad(contexts=[2048], data_dir=str(squad), limit=240), copying)
    by_question = {record["question"]: record for record in records}
    assert hint in by_question["q1-3"]["prompt"]
    assert by_question["q1-3"]["answer_elsewhere"]
    for record in records:
        documents = context_of(record["prompt"])
        others = documents[: record["position"]] + documents[record["position"] + 1 :]
        assert record["answer_elsewhere"] == any(record["references"][1] in text.lower() for text in others)
    alone = sum(not record["answer_elsewhere"] for record in records)
    assert 0 < alone < 240
    assert rows[2048, None, "accuracy_gold_alone"].count == alone


def test_hotpot_keeps_its_ten_paragraphs(hotpot):
    records, rows = run(Hotpot(contexts=[2048, 3072], data_dir=str(hotpot), limit=20), copying)
    assert rows[2048, None, "accuracy"].value == 1
    for record in records:
        n = int(record["question"][1:])
        documents = context_of(record["prompt"])
        own = [f"title {n}-{k}\nThe color of title {n}-{k} is shade{n}-{k}. It is old." for k in range(10)]
        assert set(own) <= set(documents)
        assert documents[record["position"]] == own[7]
        assert len(record["supporting_depths"]) == 2
        assert record["supporting_depths"][0] == record["depth"]


def test_hotpot_published_order(hotpot):
    records, _ = run(Hotpot(contexts=[3072], data_dir=str(hotpot), limit=10, gold_position="published"), copying)
    for record in records:
        order = list(range(record["documents"]))
        Random(42).shuffle(order)
        assert record["position"] == order.index(7)


def test_questions_that_do_not_fit_are_counted(squad):
    path = squad / "squad" / "dev.json"
    data = json.loads(path.read_text())
    for number in range(6):
        data["data"][number]["paragraphs"][0]["context"] += " And so on." * 100
    path.write_text(json.dumps(data))
    records, rows = run(Squad(contexts=[1024], data_dir=str(squad)), copying)
    assert len(records) == 234
    assert rows[1024, None, "excluded_questions"].value == 6


def test_a_length_that_is_too_short(squad, hotpot):
    with pytest.raises(UserError, match=r"no question of .*squad fits into 256 tokens .* the shortest needs \d+"):
        Squad(contexts=[256], data_dir=str(squad)).items(Answering(copying))
    with pytest.raises(UserError, match=r"no question of .*hotpotqa fits into 512 tokens"):
        Hotpot(contexts=[512], data_dir=str(hotpot)).items(Answering(copying))


def test_a_length_that_the_data_cannot_fill(squad):
    model, task = Answering(copying), Squad(contexts=[65536], data_dir=str(squad), limit=2)
    with pytest.raises(UserError, match=r"all 240 documents of .*squad make only .* too few for contexts of 65,536"):
        list(task.ask(model, task.items(model)))


def test_missing_and_broken_files(tmp_path, squad):
    with pytest.raises(
        UserError, match=r"no \.json file in .*hotpotqa: .*mm data fetch hotpotqa .*put HotpotQA's .*--data_dir"
    ):
        Hotpot(data_dir=str(tmp_path)).items(Answering(copying))
    path = squad / "squad" / "dev.json"
    data = json.loads(path.read_text())
    del data["data"][2]["paragraphs"][4]["qas"][0]["answers"]
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"dev\.json, article 3, paragraph 5 .* it has no 'answers'"):
        Squad(data_dir=str(squad)).items(Answering(copying))
    path.write_text('{"data": [')
    with pytest.raises(UserError, match=r"dev\.json: not JSON: .*character 11"):
        Squad(data_dir=str(squad)).items(Answering(copying))
    path.write_text('["no articles"]')
    with pytest.raises(UserError, match=r"dev\.json is not in the published form"):
        Squad(data_dir=str(squad)).items(Answering(copying))


def test_a_broken_row_of_hotpot(hotpot):
    path = hotpot / "hotpotqa" / "dev.json"
    rows = json.loads(path.read_text())
    for broken, what in [({"answer": 5}, "5 stands where"), ({"context": []}, "none of its paragraphs")]:
        path.write_text(json.dumps([*rows[:3], rows[3] | broken, *rows[4:]]))
        with pytest.raises(UserError, match=rf"dev\.json, row 4 .*{what}"):
            Hotpot(data_dir=str(hotpot)).items(Answering(copying))


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"contexts": []}, {"contexts": [0]}, {"gold_position": "middle"}])
def test_settings_out_of_range(wrong):
    with pytest.raises(UserError):
        Squad(**wrong)


def test_settings_say_what_was_read_and_make_the_task_again(squad):
    settings = Squad(contexts=[4096, 1024], data_dir=str(squad)).settings()
    assert settings["contexts"] == [1024, 4096]
    del settings["version"]
    again = Squad(**settings | {"data_dir": str(squad)})
    assert again.items(Answering(copying))
    (squad / "squad" / "more.json").write_text('{"data": []}')
    other = Squad(**settings | {"data_dir": str(squad)})
    assert other.settings()["data_hash"] != settings["data_hash"]
    with pytest.raises(UserError, match="its hash is"):
        other.items(Answering(copying))


@needs_data
@pytest.mark.parametrize(("task", "length"), [(Squad, 4096), (Hotpot, 16384)])
def test_on_the_real_data(task, length):
    """Prompts of the real data, taken apart and put together again."""
    chosen = task(contexts=[length], data_dir=str(DATA), limit=15)
    records, rows = run(chosen, lambda prompt: "")
    assert next(iter(rows.values())).value == 0
    for record in records:
        documents = context_of(record["prompt"])
        gold = documents[record["position"]].lower()
        assert record["references"] in (["yes"], ["no"]) or any(r.lower() in gold for r in record["references"])
        question = record["prompt"].rsplit("\n\nQuestion: ", 1)[1].removesuffix(" Answer:")
        assert qa_prompt(documents, question) == record["prompt"]
        assert 0.9 * record["group"]["length"] <= record["tokens"] <= record["group"]["length"]

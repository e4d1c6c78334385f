# ruff: noqa: E402
"""The harness' numbers of a network are those of its own class for transformers on the same exported weights."""

import dataclasses

import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`")
pytest.importorskip("accelerate", reason="the harness' class for transformers needs accelerate")
transformers = pytest.importorskip("transformers", reason="needs the extra `export`")

import torch
from byte_networks import CONFIGS, build
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch.nn import functional as F

import mm_lightning.transformers  # noqa: F401
from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.data.tokenizer_training import train_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.evaluation.model import Model
from mm_lightning.evaluation.persistent.language_model import LanguageModel
from mm_lightning.evaluation.registry import find_task
from mm_lightning.inference.export import export

CONTEXT = 2048


def pair(name, folder, tokenizer=None):
    """A network, and the harness' class around what was exported of it, both in float32."""
    network = build(name).float()
    if tokenizer is not None:
        network = dataclasses.replace(CONFIGS[name], vocab_size=tokenizer.vocab_size).build().eval()
    tokenizer = tokenizer or load_tokenizer("bytes")
    export(network, tokenizer, folder, CONTEXT)
    exported = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs = HFLM(exported, tokenizer=transformers.AutoTokenizer.from_pretrained(folder), batch_size=3, device="cpu")
    return Model(network, tokenizer, CONTEXT, batch_size=3), theirs


def log_prob(model, context, continuation):
    """From one forward pass."""
    with torch.no_grad():
        logits = model.network(torch.tensor([[*context, *continuation]]))[0, len(context) - 1 : -1]
    return -float(F.cross_entropy(logits, torch.tensor(continuation), reduction="sum"))


def request(kind, *args, task=None):
    return Instance(kind, {}, args, 0, (task, 4, 1))


@pytest.mark.parametrize(
    ("network", "name"),
    [("v2", "arc_easy"), ("v2", "nq_open"), ("v1", "arc_easy"), ("transformer", "arc_easy")],
)
def test_scores_are_those_of_the_harness(network, name, data, tmp_path):
    model, theirs = pair(network, tmp_path / "exported")
    task = find_task(name)(data_dir=str(data))
    again = find_task(name)(data_dir=str(data))
    if name == "nq_open":
        for one in (task, again):
            one.tasks()[name].config.generation_kwargs["max_gen_toks"] = 32
    records = {record["key"]: record for record in task.ask(model, task.items(model))}
    for harness_task in again.tasks().values():
        harness_task.set_fewshot_seed(1234)
    found = evaluate(theirs, {"tasks": again.tasks(), "groups": {}}, bootstrap_iters=0)
    for sample in found["samples"][name]:
        mine = records[f"{name}/{sample['doc_id']}"]
        assert mine["prompt"] == sample["arguments"][0][0]
        if name == "nq_open":
            assert mine["answers"] == [response[0] for response in sample["resps"]]
        else:
            for (log_prob, greedy), [(expected, same)] in zip(mine["answers"], sample["resps"], strict=True):
                assert log_prob == pytest.approx(expected, rel=1e-5)
                assert greedy == same
    rows = {row.metric: row.value for row in task.rows(list(records.values()))}
    assert len(rows) == (2 if name == "arc_easy" else 1)
    for metric, value in rows.items():
        metric, _, kind = metric.partition(",")
        assert value == found["results"][name][f"{metric},{kind or 'none'}"]


def test_whole_texts_are_those_of_the_harness(tmp_path):
    model, theirs = pair("v2", tmp_path / "exported")
    texts = ["", "A short text.", "one of several windows " * 9]
    whole = [request("loglikelihood_rolling", text) for text in texts]
    theirs.add_bos_token = False  # each window already begins with it
    for length, requests in ((CONTEXT, whole), (50, whole), (CONTEXT, whole[:1])):
        theirs._max_length = length
        expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
        assert LanguageModel(model, length).loglikelihood_rolling(requests) == pytest.approx(expected, rel=1e-5)


def test_shared_contexts_are_the_plain_computation(model):
    """Contexts that several continuations share, with and without a long common beginning."""
    for begin in ("", "Four examples come before each question: " * 2):
        pairs = [(f"{begin}{'x' * n} is", f" {word}") for n in (0, 3, 3, 5) for word in ("a", "longer", "a", "é")]
        requests = [request("loglikelihood", *pair) for pair in pairs]
        found = LanguageModel(model, 0).loglikelihood(requests, disable_tqdm=True)
        alone = [LanguageModel(model, 0).loglikelihood([r], disable_tqdm=True)[0] for r in requests]
        assert [greedy for _, greedy in found] == [greedy for _, greedy in alone]
        plain = []
        for context, continuation in pairs:
            tokens = [model.bos, *model.encode(context + continuation)]
            cut = 1 + len(model.encode(context))
            plain.append(log_prob(model, tokens[:cut], tokens[cut:]))
        assert [x for x, _ in found] == pytest.approx(plain, abs=1e-5)
        assert [x for x, _ in alone] == pytest.approx(plain, abs=1e-5)


def test_a_common_beginning_is_read_once(model, monkeypatch):
    read = []
    plain = Model.prefill
    monkeypatch.setattr(Model, "prefill", lambda self, tokens, **more: read.append(len(tokens)) or plain(self, tokens))
    network, begin = LanguageModel(model, 0), "b" * 100
    for numbers in (range(10, 14), range(14, 18)):
        network.loglikelihood([request("loglikelihood", f"{begin}{n} is", " it") for n in numbers], disable_tqdm=True)
    assert read == [102]  # begin of the document, 100 letters, "1"


def test_long_texts_lose_their_beginning(model):
    text = "0123456789" * 5
    network = LanguageModel(model, 24)
    [(found, _)] = network.loglikelihood([request("loglikelihood", text, "abcd")], disable_tqdm=True)
    tokens = [model.bos, *model.encode(text[-20:])]  # with three of the four letters, 24 are read
    assert found == pytest.approx(log_prob(model, tokens, model.encode("abcd")), abs=1e-5)
    [answer] = network.generate_until([request("generate_until", text, {"until": [], "max_gen_toks": 8})])
    assert answer == model.greedy([[model.bos, *model.encode(text[-15:])]], 8)[0]
    [answer] = network.generate_until([request("generate_until", text, {"until": [], "max_gen_toks": 20})])
    assert answer == model.greedy([[model.bos, *model.encode(text[-11:])]], 20)[0]  # half of it stays the prompt's
    whole = [model.bos, *model.encode(text)]
    [(found, _)] = LanguageModel(model, 0).loglikelihood([request("loglikelihood", text, "abcd")], disable_tqdm=True)
    assert found == pytest.approx(log_prob(model, whole, model.encode("abcd")), abs=1e-5)
    assert LanguageModel(model).limit == 64
    with pytest.raises(UserError, match="max_length"):
        LanguageModel(model, -1)


def test_answers_without_a_token_are_those_of_the_harness(tmp_path, caplog):
    """The tokenizer joins "the" and "re" into one token, so the answer "re" has none of its own."""
    tokenizer = train_tokenizer(["the\nthere\nthere\n"] * 9, 300, tmp_path / "tokenizer.json", progress=False)
    assert len(tokenizer.encode("there")) == len(tokenizer.encode("the")) == 1
    model, theirs = pair("v2", tmp_path / "exported", tokenizer)
    # their class can do so beside a question of the same context with one token, and fails where it stands alone
    pairs = [("the", "re"), ("the", " ox"), ("the", "!"), ("ox ", " the"), ("", "there"), (" ", "the")]
    requests = [request("loglikelihood", *pair, task="arc_easy") for pair in pairs]
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    assert expected[0] == (0.0, True)
    network = LanguageModel(model)
    found = network.loglikelihood(requests, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], rel=1e-5)
    empty = [request("loglikelihood", *pair) for pair in (("the", "re"), ("the", ""), ("", ""))]
    assert [LanguageModel(model).loglikelihood([one])[0] for one in empty] == [(0.0, True)] * 3
    assert LanguageModel(model, 8).tokens_cut(requests[0]) == 0
    assert network.loglikelihood([]) == network.generate_until([]) == network.loglikelihood_rolling([]) == []
    (said,) = [record.getMessage() for record in caplog.records if "arc_easy" in record.getMessage()]
    assert "arc_easy, document 5" in said
    assert "'re'" in said


def test_answers_end_before_their_stop_strings(model):
    requests = [request("generate_until", "ab", {"max_gen_toks": 12})]
    [whole] = LanguageModel(model).generate_until(requests)
    stop = whole[3:5]
    for until in ([stop, ""], stop, [None, stop]):
        requests = [request("generate_until", "ab", {"until": until, "max_gen_toks": 12})]
        assert LanguageModel(model).generate_until(requests) == [whole[: whole.index(stop)]]


GREEDY = [
    ({"do_sample": False, "temperature": 1.0, "max_new_tokens": 3}, 3),
    ({"do_sample": False, "temperature": 0.8, "top_p": 0.9, "top_k": 4, "max_tokens": 5}, 5),
    ({"temperature": 0.0, "max_completion_tokens": 2, "num_beams": 1}, 2),
    ({"max_new_tokens": 9, "max_gen_toks": 4, "until": []}, 4),
    ({"max_gen_toks": None, "max_tokens": "6"}, 6),
]


def test_settings_are_read_as_the_harness_reads_them(tmp_path):
    """Two tasks that ask the same with different settings, all at once."""
    model, theirs = pair("v2", tmp_path / "exported")
    requests = [request("generate_until", "ab", wanted) for wanted, _ in GREEDY]
    found = LanguageModel(model).generate_until(requests)
    assert found == theirs.generate_until(requests, disable_tqdm=True)
    tokens = [model.bos, *model.encode("ab")]
    assert found == [model.greedy([tokens], count)[0] for _, count in GREEDY]
    # where their class fails, or a generation of 256 tokens takes long
    network = LanguageModel(model, 6)
    assert network.generate_until([request("generate_until", "ab", {"max_gen_toks": 0})]) == [""]
    assert network.tokens_cut(request("generate_until", "ab", {"max_new_tokens": 3})) == 0
    assert network.tokens_cut(request("generate_until", "abcd", {"max_new_tokens": 3})) == 2
    [defaulted] = network.generate_until([request("generate_until", "ab", {"until": None})])
    assert defaulted == model.greedy([tokens], 256)[0]


@pytest.mark.parametrize(
    "wanted",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0},
        {"temperature": 0.7},
        {"num_beams": 10},
        {"max_gen_toks": -1},
        {"max_gen_toks": "many"},
        {"until": [3]},
        {"temperature": None},
        None,
    ],
)
def test_other_answers_are_refused_by_name(model, wanted):
    with pytest.raises(UserError, match=r"humaneval_64, document 5.*generation_kwargs"):
        LanguageModel(model).generate_until([request("generate_until", "ab", wanted, task="humaneval_64")])


@pytest.fixture(scope="module")
def model():
    """A v2 network in float64, trained at 64 tokens."""
    return Model(build("v2"), load_tokenizer("bytes"), 64, batch_size=3)

# ruff: noqa: E402
"""The harness' numbers of a network are those of its own class for transformers on the same exported weights."""

import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`")
pytest.importorskip("accelerate", reason="the harness' class for transformers needs accelerate")
transformers = pytest.importorskip("transformers", reason="needs the extra `export`")

import torch
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch.nn import functional as F

from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.evaluation.model import Model
from mm_lightning.evaluation.persistent.language_model import LanguageModel
from mm_lightning.evaluation.task import find_task
from mm_lightning.inference.export import export
from tests.inference.conftest import build

CONTEXT = 2048


def pair(name, folder):
    """A network, and the harness' class around what was exported of it, both in float32."""
    network, tokenizer = build(name).float(), load_tokenizer("bytes")
    export(network, tokenizer, folder, CONTEXT)
    exported = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs = HFLM(exported, tokenizer=transformers.AutoTokenizer.from_pretrained(folder), batch_size=3, device="cpu")
    return Model(network, tokenizer, CONTEXT, batch_size=3), theirs


def log_prob(model, context, continuation):
    """From one forward pass."""
    with torch.no_grad():
        logits = model.network(torch.tensor([[*context, *continuation]]))[0, len(context) - 1 : -1]
    return -float(F.cross_entropy(logits, torch.tensor(continuation), reduction="sum"))


def request(kind, *args):
    return Instance(kind, {}, args, 0)


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
    requests = [request("loglikelihood_rolling", text) for text in texts]
    theirs.add_bos_token = False  # each window already begins with it
    for length in (CONTEXT, 50):
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


def test_answers_end_before_their_stop_strings(model):
    requests = [request("generate_until", "ab", {"max_gen_toks": 12})]
    [whole] = LanguageModel(model).generate_until(requests)
    stop = whole[3:5]
    requests = [request("generate_until", "ab", {"until": [stop, ""], "max_gen_toks": 12})]
    assert LanguageModel(model).generate_until(requests) == [whole[: whole.index(stop)]]
    with pytest.raises(UserError, match="greedy"):
        LanguageModel(model).generate_until([request("generate_until", "ab", {"do_sample": True})])


@pytest.fixture(scope="module")
def model():
    """A v2 network in float64, trained at 64 tokens."""
    return Model(build("v2"), load_tokenizer("bytes"), 64, batch_size=3)

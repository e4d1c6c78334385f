"""Our networks inside transformers: the same tokens, however they are generated, batched, cut and cached."""

import copy
import inspect
from dataclasses import asdict

import byte_networks
import pytest
import torch

from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.networks import MemoryMosaicConfig

transformers = pytest.importorskip("transformers")

import mm_lightning.transformers  # noqa: E402, F401
from mm_lightning.inference.configuration import MMLightningConfig  # noqa: E402
from mm_lightning.inference.export_tokenizer import transformers_tokenizer  # noqa: E402
from mm_lightning.inference.modeling import MMLightningForCausalLM, document_starts  # noqa: E402

GREEDY = {"max_new_tokens": 14, "do_sample": False}


def wrap(network):
    described = {"class": type(network.config).__name__, "fields": asdict(network.config)}
    with torch.device("meta"):
        model = MMLightningForCausalLM(MMLightningConfig(described, bos_token_id=256, pad_token_id=257))
    model.network = network
    return model.eval()


@pytest.fixture(scope="module", params=[*byte_networks.CONFIGS, *byte_networks.STATES])
def model(request):
    return wrap(byte_networks.build(request.param))


@pytest.fixture(scope="module")
def v2():
    return wrap(byte_networks.build("v2"))


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(256, (2, 13), generator=torch.Generator().manual_seed(0))


def greedy(network, tokens):
    """Every token from a forward pass over all that came before."""
    with torch.inference_mode():
        for _ in range(GREEDY["max_new_tokens"]):
            tokens = torch.cat([tokens, network(tokens)[:, -1:].argmax(-1)], 1)
    return tokens


@pytest.mark.interfaces
def test_greedy_is_ours_with_cache_without_and_in_chunks(model, tokens):
    expected = greedy(model.network, tokens)
    for settings in ({}, {"use_cache": False}, {"prefill_chunk_size": 5}):
        assert torch.equal(model.generate(tokens, **GREEDY, **settings), expected)


def test_a_stop_string_ends_a_text(v2, tokens):
    expected = greedy(v2.network, tokens[:1])
    place = next(n for n in range(tokens.shape[1], expected.shape[1]) if 32 < expected[0, n] < 127)
    settings = {"stop_strings": [chr(expected[0, place])], "tokenizer": transformers_tokenizer(load_tokenizer("bytes"))}
    assert torch.equal(v2.generate(tokens[:1], **GREEDY, **settings), expected[:, : place + 1])


def test_beams_and_seeded_samples_do_not_depend_on_the_cache(model, tokens):
    beams = [model.generate(tokens, num_beams=3, use_cache=cached, **GREEDY) for cached in (True, False)]
    assert torch.equal(*beams)
    assert not torch.equal(beams[0], greedy(model.network, tokens))
    samples = []
    for seed, cached in ((1, True), (1, False), (2, True)):
        torch.manual_seed(seed)
        samples.append(
            model.generate(tokens, do_sample=True, num_return_sequences=2, max_new_tokens=8, use_cache=cached)
        )
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_padding_on_the_left_changes_nothing(model, tokens):
    short = tokens[:1, 5:]
    padded = torch.cat([torch.cat([torch.full((1, 5), 257), short], 1), tokens[1:]])
    mask = torch.ones_like(padded)
    mask[0, :5] = 0
    alone, other = greedy(model.network, short), greedy(model.network, tokens[1:])
    for settings in ({}, {"use_cache": False}, {"prefill_chunk_size": 3}, {"prefill_chunk_size": 6}):
        found = model.generate(padded, attention_mask=mask, **GREEDY, **settings)
        assert torch.equal(found[:1, 5:], alone)
        assert torch.equal(found[1:], other)


@pytest.mark.interfaces
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_texts_go_on_from_a_prefix_that_was_read_once(model, tokens, name):
    with torch.no_grad():
        prefix = getattr(model(tokens[:1, :8]), name)
    ends = tokens[:, 8:]
    for end in ends:
        whole = torch.cat([tokens[:1, :8], end[None]], 1)
        found = model.generate(whole, **{name: copy.deepcopy(prefix)}, **GREEDY)
        assert torch.equal(found, greedy(model.network, whole))
    assert prefix.get_seq_length() == 8
    prefix.batch_repeat_interleave(2)  # and both at once
    whole = torch.cat([tokens[:1, :8].expand(2, -1), ends], 1)
    found = model.generate(whole, **{name: prefix}, return_dict_in_generate=True, **GREEDY)
    assert torch.equal(found.sequences, greedy(model.network, whole))
    assert found.cache is found.past_key_values is prefix


def test_the_cache_has_two_names(v2, tokens):
    with torch.no_grad():
        logits = v2(tokens).logits
        for name in ("cache", "past_key_values"):
            before = v2(tokens[:, :8], **{name: v2.new_cache()})
            assert before.cache is before.past_key_values
            torch.testing.assert_close(v2(tokens[:, 8:], **{name: before.cache}).logits, logits[:, 8:])
        with pytest.raises(ValueError, match="two names of one argument"):
            v2(tokens, cache=v2.new_cache(), past_key_values=v2.new_cache())
    assert before.cache.is_linear == before.cache.is_sliding == before.cache.is_dummy == [False, False]


def test_a_prefix_goes_on_with_the_new_tokens_only(model, tokens):
    loop = transformers.GenerationMixin.prepare_inputs_for_generation
    if "next_sequence_length" not in inspect.signature(loop).parameters:
        pytest.skip("transformers below 5.3 takes the whole text")
    with torch.no_grad():
        prefix = model(tokens[:, :8]).cache
    with pytest.raises(ValueError, match=r"has read 8 tokens and 5 are given, .* give the whole text, or"):
        model.generate(tokens[:, 8:], cache=prefix, **GREEDY)
    found = model.generate(tokens[:, 8:], attention_mask=torch.ones_like(tokens), cache=prefix, **GREEDY)
    assert torch.equal(found[:, 5:], greedy(model.network, tokens)[:, 13:])


@pytest.mark.parametrize("size", [2, 20])
def test_a_prefix_goes_on_in_chunks_or_the_text_is_refused(model, tokens, size):
    with torch.no_grad():
        prefix = model(tokens[:, :8]).cache
    try:
        outcome = model.generate(tokens, cache=prefix, prefill_chunk_size=size, **GREEDY)
    except ValueError as error:  # versions of transformers that would read all of the text again
        outcome = str(error)
    if isinstance(outcome, str):
        assert "do not give the text in the cache again" in outcome
    else:
        assert torch.equal(outcome, greedy(model.network, tokens))


def test_logits_and_loss(model, tokens):
    with torch.no_grad():
        logits = model(tokens).logits
        torch.testing.assert_close(model(tokens, logits_to_keep=2).logits, logits[:, -2:])
        torch.testing.assert_close(model(tokens, logits_to_keep=torch.tensor([3, 5])).logits, logits[:, [3, 5]])
        torch.testing.assert_close(model(tokens, return_dict=False, use_cache=False)[0], logits)
    labels = tokens.clone()
    labels[0, :4] = -100
    loss = model(tokens, labels=labels, logits_to_keep=1).loss
    probabilities = logits.softmax(-1)
    by_hand = [
        -float(probabilities[row, t - 1, labels[row, t]].log())
        for row in range(2)
        for t in range(1, 13)
        if labels[row, t] != -100
    ]
    assert float(loss.detach()) == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in model.network.parameters())
    model.zero_grad()


def test_padding_on_the_right_is_for_scoring_only(v2, tokens):
    mask = torch.ones_like(tokens)
    mask[0, 9:] = 0
    with torch.no_grad():
        scored = v2(tokens, attention_mask=mask)
        torch.testing.assert_close(scored.logits[0, :9], v2(tokens).logits[0, :9])
        assert scored.past_key_values is None
        with pytest.raises(ValueError, match="padding must be on the left"):
            v2(tokens, attention_mask=mask, use_cache=True)


def test_where_documents_begin_in_a_chunk():
    mask = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    assert document_starts(mask, 5).int().tolist() == [[0, 0, 0, 1, 0], [0] * 5, [0, 1, 0, 0, 0]]
    assert document_starts(mask, 2).int().tolist() == [[1, 0], [0, 0], [0, 0]]
    assert document_starts(mask, 1) is None
    with pytest.raises(ValueError, match="got \\(3, 5\\) for 6 tokens"):
        document_starts(mask, 6)


def test_what_does_not_fit_is_refused(v2, tokens):
    with torch.no_grad(), pytest.raises(ValueError, match=r"does not fit a DynamicCache: .* model.new_cache()"):
        v2(tokens, past_key_values=transformers.DynamicCache())
    with torch.no_grad():
        cache = v2(tokens, past_key_values=v2.new_cache()).past_key_values
    cache.crop(0)
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(-1)
    with torch.no_grad(), pytest.raises(ValueError, match="as many rows as the state, 2, got 1"):
        v2(tokens[:1], past_key_values=cache)
    with torch.no_grad(), pytest.raises(ValueError, match=r"cache and the new ones, 13 \+ 13, got 13"):
        v2(tokens, attention_mask=torch.ones_like(tokens), past_key_values=cache)
    with pytest.raises(ValueError, match="inference_mode"):
        v2(tokens, use_cache=True)
    cache.reset()
    assert (cache.get_seq_length(), cache.batch_size, len(cache)) == (0, -1, 2)
    with pytest.raises(UserError, match="a network 'Perceptron', which this version of mm-lightning does not know"):
        MMLightningConfig({"class": "Perceptron", "fields": {}})


def test_positions_are_the_networks_own(v2, tokens):
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    padded = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
    with torch.no_grad():
        expected = v2(tokens, attention_mask=mask).logits
        assert torch.equal(v2(tokens, attention_mask=mask, position_ids=padded).logits, expected)
        assert torch.equal(v2(tokens, position_ids=torch.arange(13)[None] + 7).logits, v2(tokens).logits)
        for wrong in (padded, torch.arange(12)[None], torch.arange(13)[None] % 6):
            with pytest.raises(ValueError, match="leave them out"):
                v2(tokens, position_ids=wrong)
    settings = {"attention_mask": mask, **GREEDY}
    assert torch.equal(v2.generate(tokens, position_ids=padded, **settings), v2.generate(tokens, **settings))


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states"])
def test_what_is_not_kept_is_refused(v2, tokens, name):
    with torch.no_grad():
        assert torch.equal(v2(tokens, **{name: False}).logits, v2(tokens).logits)
        with pytest.raises(ValueError, match=f"not ke.*leave {name} out"):
            v2(tokens, **{name: True})
    with pytest.raises(ValueError, match=f"leave {name} out"):
        v2.generate(tokens, return_dict_in_generate=True, **{name: True}, **GREEDY)


def test_a_folder_of_a_newer_version_is_told(tmp_path):
    config = MMLightningConfig()
    config.network["fields"] |= {"warp": 9, "folds": 2}
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^config.json describes a MemoryMosaic with folds, warp, which .* upgrade"):
        transformers.AutoConfig.from_pretrained(tmp_path)


def test_experts_are_kept_balanced_in_training(tokens):
    torch.manual_seed(0)
    small = {**byte_networks.SMALL, "layers": 1, "experts": 3}
    model = wrap(MemoryMosaicConfig(**small, persistent="experts", balance_weight=50.0).build())
    evaluated = model(tokens, labels=tokens).loss
    trained = model.train()(tokens, labels=tokens).loss
    # 50 times a number that is 1 for experts used alike and at most 3
    assert 40 < float((trained - evaluated).detach()) < 151


def test_a_larger_vocabulary(v2, tokens):
    model = copy.deepcopy(v2)
    model.resize_token_embeddings(300)
    assert model.config.vocab_size == model.config.network_config().vocab_size == 300
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits[..., :258], v2(tokens).logits)


def test_blocks_are_computed_again_where_it_is_asked_for(model, tokens):
    model = copy.deepcopy(model).train()
    entered = []
    model.network.blocks[0].register_forward_pre_hook(lambda *_: entered.append(True))

    def gradients():
        model.zero_grad()
        entered.clear()
        torch.manual_seed(0)  # of dropout
        model(tokens, labels=tokens).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    assert len(entered) == 1
    for settings in ({}, {"gradient_checkpointing_kwargs": {"use_reentrant": False}}):
        model.gradient_checkpointing_enable(**settings)
        assert model.is_gradient_checkpointing
        assert all(map(torch.equal, gradients(), plain))
        assert len(entered) == 2
    model.gradient_checkpointing_disable()
    gradients()
    assert (model.is_gradient_checkpointing, len(entered)) == (False, 1)


def test_embeddings_in_the_place_of_tokens(model, tokens):
    embedded = model.get_input_embeddings()(tokens)
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=embedded).logits, model(tokens).logits)
        for wrong in ({}, {"input_ids": tokens, "inputs_embeds": embedded}):
            with pytest.raises(ValueError, match="input_ids or inputs_embeds, one of the two"):
                model(**wrong)
    embedded.retain_grad()
    model(inputs_embeds=embedded, labels=tokens).loss.backward()
    assert float(embedded.grad.abs().sum()) > 0
    model.zero_grad()
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    for settings in ({}, {"use_cache": False}, {"num_beams": 2}, {"attention_mask": mask}):
        found = model.generate(inputs_embeds=embedded.detach(), **settings, **GREEDY)
        assert torch.equal(found, model.generate(tokens, **settings, **GREEDY)[:, tokens.shape[1] :])


def test_the_attention_of_transformers_is_accepted_and_changes_nothing(tmp_path, tokens):
    wrap(byte_networks.build("transformer").float()).save_pretrained(tmp_path)
    load = transformers.AutoModelForCausalLM.from_pretrained
    plain = load(tmp_path)
    with torch.no_grad():
        for name in ("sdpa", "eager"):
            assert torch.equal(load(tmp_path, attn_implementation=name)(tokens).logits, plain(tokens).logits)

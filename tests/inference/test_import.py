"""Imported networks against what they were elsewhere: v1's equations one number at a time, and transformers' Llama."""

import json
import math

import pytest
import torch

from mm_lightning.checkpoint import find_checkpoint, load_network, open_weights
from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.inference.import_checkpoint import import_command
from mm_lightning.networks import MemoryMosaicConfig

transformers = pytest.importorskip("transformers")

import mm_lightning.transformers  # noqa: E402, F401

V, L, H, D, S = 17, 2, 2, 4, 5
LARGEST = math.log(65535)  # exponent of a key


def published(banks, bias, key_scale=0.1):
    """A checkpoint file's content, by the published names and shapes."""
    d, generator = H * D, torch.Generator().manual_seed(banks)

    def random(*shape, scale=0.3, around=0.0):
        return around + scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    def linear(name):
        return {f"{name}.weight": random(d, d), **({f"{name}.bias": random(d)} if bias else {})}

    def norm(name):
        return {f"{name}.weight": random(d, around=1.0), **({f"{name}.bias": random(d)} if bias else {})}

    def keys(name):
        scalars = {"leaky_avg.leaky_key_beta": random(1, H, 1, 1, scale=0.1), "leaky_avg.coef": random(9, 9)}
        scalars["key_scale"] = random(1, H, 1, 1, scale=0.02, around=key_scale)
        return {**linear(f"{name}.W_k"), **{f"{name}.{n}": x for n, x in scalars.items()}}

    model = {"mosaic.wte.weight": random(V, d), **norm("mosaic.ln_f")}
    model["lm_head.weight"] = model["mosaic.wte.weight"]
    for i in range(L):
        b = f"mosaic.h.{i}."
        model |= {**norm(b + "ln_1"), **norm(b + "ln_2"), **linear(b + "attn.c_proj"), **linear(b + "mlp.c_proj")}
        model |= {
            **keys(b + "attn.k_featurizer"),
            **keys(b + "mlp.k_featurizer"),
            **linear(b + "attn.v_featurizer.W_v"),
        }
        model[b + "attn.v_featurizer.coef"] = torch.rand(1, H, 1, 1, generator=generator, dtype=torch.float64)
        model[b + "attn.v_featurizer.val_scale"] = random(1, H, 1, 1, scale=0.05)
        model[b + "attn.bias"] = torch.ones(1, 1, 9, 9).tril(-1).bool()
        model |= {b + f"mlp.P_{kind}": random(banks, 1, H, S, D, scale=1.0) for kind in "kv"}
        model[b + "mlp.out_scale"] = random(1, H, 1, 1, scale=0.05)
    settings = {"n_layer": L, "n_head": H, "n_embd": H * D, "block_size": 9, "bias": bias, "dropout": 0.05}
    return {"model": model, "optimizer": {}, "model_args": settings, "iter_num": 3, "config": {}}


def by_hand(w, tokens, largest=LARGEST):
    """(T, V) logits: the published equations for one token, head, pair and slot at a time."""
    T = len(tokens)

    def linear(x, name):
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0)

    def norm(x, name):
        x = x - x.mean()
        return x / (x.square().mean() + 1e-5).sqrt() * w[f"{name}.weight"] + w.get(f"{name}.bias", 0)

    def keys(ys, name, h, power):
        """Averaged by the sum itself, not step by step."""
        raw = [linear(y, f"{name}.W_k")[h * D : (h + 1) * D] for y in ys]
        leak = (-(10 * w[f"{name}.leaky_avg.leaky_key_beta"][0, h, 0, 0]).abs()).exp()
        sums = [sum(leak ** (t - s) * raw[s] for s in range(t + 1)) for t in range(T)]
        exponent = (power * 10 * w[f"{name}.key_scale"][0, h, 0, 0]).clamp(max=largest)
        return [exponent.exp() * k / k.norm() for k in sums]

    def contextual(ys, name):
        out = torch.zeros(T, H * D, dtype=torch.float64)
        v_name = f"{name}.v_featurizer"
        for h in range(H):
            part = slice(h * D, (h + 1) * D)
            k, raw = keys(ys, f"{name}.k_featurizer", h, 1), [linear(y, f"{v_name}.W_v")[part] for y in ys]
            gamma, scale = w[f"{v_name}.coef"][0, h, 0, 0], w[f"{v_name}.val_scale"][0, h, 0, 0]
            for t in range(1, T):
                v = [gamma * raw[i] + (1 - gamma) * raw[i + 1] for i in range(t)]
                weights = torch.stack([k[t] @ k[i] for i in range(t)]).softmax(0)
                out[t, part] = sum(a * (10 * scale).exp() * x / x.norm() for a, x in zip(weights, v, strict=True))
        return [linear(x, f"{name}.c_proj") for x in out]

    def persistent(ys, name):
        out = torch.zeros(T, H * D, dtype=torch.float64)
        for h in range(H):
            for t, k in enumerate(keys(ys, f"{name}.k_featurizer", h, 2)):
                banks = [
                    (P_k[0, h] @ k).softmax(0) @ P_v[0, h]
                    for P_k, P_v in zip(w[name + ".P_k"], w[name + ".P_v"], strict=True)
                ]
                answer = sum(banks) / len(banks)
                out[t, h * D : (h + 1) * D] = (10 * w[f"{name}.out_scale"][0, h, 0, 0]).exp() * answer
        return [linear(x, f"{name}.c_proj") for x in out]

    xs = [w["mosaic.wte.weight"][token] for token in tokens]
    for i in range(L):
        for memory, name, before in ((contextual, "attn", "ln_1"), (persistent, "mlp", "ln_2")):
            b = f"mosaic.h.{i}."
            answers = memory([norm(x, b + before) for x in xs], b + name)
            xs = [x + y for x, y in zip(xs, answers, strict=True)]
    return torch.stack([w["lm_head.weight"] @ norm(x, "mosaic.ln_f") for x in xs])


@pytest.mark.parametrize(("banks", "bias"), [(1, False), (3, True)])
def test_v1_computes_what_the_published_equations_say(banks, bias, tmp_path):
    content = published(banks, bias)
    torch.save(content, tmp_path / "ckpt.pt")
    import_command(str(tmp_path / "ckpt.pt"), str(tmp_path / "run"), tokenizer=None)
    weights = open_weights(find_checkpoint(tmp_path / "run"))
    config = MemoryMosaicConfig(**json_network(tmp_path / "run"))
    assert (config.bias, config.persistent_banks, config.persistent_slots, config.dropout) == (bias, banks, S, 0.05)
    network = config.build().double().eval()
    network.load_state_dict({**weights, "classifier.weight": weights["embedding.weight"]})
    tokens = torch.tensor([3, 16, 0, 3, 3, 7, 11, 2])
    with torch.no_grad():
        assert (network(tokens[None])[0] - by_hand(content["model"], tokens)).abs().max() < 1e-9


def json_network(run):
    from mm_lightning.checkpoint import read_metadata

    return read_metadata(find_checkpoint(run))["network"]["fields"]


@pytest.mark.parametrize("key_scale", [0.56, 0.7, 1.1, 1.3])  # exponents of keys, cut at 11.09 in the published code
def test_sharp_keys_of_v1_are_as_sharp_as_published(key_scale, tmp_path, capsys):
    content = published(1, False, key_scale)
    content["model"] = {f"_orig_mod.{name}": x for name, x in content["model"].items()}
    network = imported(content, tmp_path)
    assert capsys.readouterr().out.count("\n") == 2  # the checkpoint and the missing tokenizer
    tokens = torch.tensor([3, 16, 0, 3, 3, 7, 11, 2])
    expected = by_hand({name.removeprefix("_orig_mod."): x for name, x in content["model"].items()}, tokens)
    with torch.inference_mode():
        # float64 resolves q.k up to exp(2 * 11.09) to about 1e-6
        assert (network(tokens[None])[0] - expected).abs().max() < (1e-9 if key_scale < 1 else 2e-5)
        state = network.new_state()
        tokenwise = torch.cat([network(token[None, None], state=state)[0] for token in tokens])
        assert (tokenwise - expected).abs().max() < (1e-9 if key_scale < 1 else 2e-5)


def test_exponents_of_v1_can_be_cut_lower(tmp_path):
    content = published(1, False, key_scale=0.7)
    network = imported(content, tmp_path, largest_key_exponent=5)
    tokens = torch.tensor([3, 16, 0, 3])
    with torch.no_grad():
        assert (network(tokens[None])[0] - by_hand(content["model"], tokens, largest=5.0)).abs().max() < 1e-9


def imported(content, folder, **settings):
    torch.save(content, folder / "ckpt.pt")
    import_command(str(folder / "ckpt.pt"), str(folder / "run"), **settings)
    weights = open_weights(find_checkpoint(folder / "run"))
    network = MemoryMosaicConfig(**json_network(folder / "run")).build().double().eval()
    network.load_state_dict({**weights, "classifier.weight": weights["embedding.weight"]})
    return network


LLAMA = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 99,
    "rms_norm_eps": 1e-4,
}


def llama(folder, **more):
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 777.0}
    settings = {**LLAMA, "rope_parameters": rope, "initializer_range": 0.2, **more}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("more", [{}, {"tie_word_embeddings": True, "num_key_value_heads": 4, "rms_norm_eps": 1e-6}])
def test_llama_gives_the_same_logits(more, tmp_path):
    theirs = llama(tmp_path / "llama", **more)
    import_command(str(tmp_path / "llama"), str(tmp_path / "run"), tokenizer=words(tmp_path))
    ours, _ = load_network(tmp_path / "run")
    tokens = torch.randint(50, (2, 40))
    with torch.no_grad():
        assert (ours(tokens) - theirs(tokens).logits).abs().max() < 1e-4
        state = ours.new_state(2)
        pieces = [ours(piece, state=state) for piece in tokens.split(13, 1)]
    assert (torch.cat(pieces, 1) - theirs(tokens).logits).abs().max() < 1e-4


def words(folder, begin="<s>", end="</s>"):
    """A tokenizer of four words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {begin: 0, end: 1, "a": 2, "b": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


def test_older_config_files_of_llama_say_the_base_elsewhere(tmp_path):
    from mm_lightning.inference.import_llama import llama_config

    old = {**LLAMA, "rope_theta": 123.0, "rope_scaling": None}
    assert llama_config(old).rope_base == 123.0
    assert llama_config(LLAMA).rope_base == 10_000.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rotary positions are scaled \\(llama3\\)"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary positions are scaled \\(linear\\)"),
        ({"attention_bias": True, "mlp_bias": True}, "its attention has biases; its SwiGLU networks have biases"),
        ({"head_dim": 16}, "head dimension is 16"),
        ({"hidden_act": "gelu"}, "gelu instead of silu"),
        ({"quantization_config": {}}, "quantized"),
        ({"model_type": "mistral"}, "of type mistral: only llama"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
    ],
)
def test_what_no_transformer_of_ours_is_like_is_refused(change, message, tmp_path):
    config = {"model_type": "llama", **LLAMA, **change}
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(UserError, match=message):
        import_command(str(tmp_path), str(tmp_path / "out"))


def test_mistakes_are_one_line(tmp_path, capsys):
    def error(source, *more):
        assert main(["import", "--source", str(source), "--output", str(tmp_path / "out"), *more]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return line

    assert "there is no file or folder" in error(tmp_path / "none")
    assert "holds no config.json" in error(tmp_path)
    (tmp_path / "noise.pt").write_bytes(b"noise")
    assert "no checkpoint that torch writes, or its end is missing" in error(tmp_path / "noise.pt")
    torch.save({"model": {"transformer.wte.weight": torch.ones(2)}}, tmp_path / "gpt.pt")
    assert "it holds transformer.wte.weight, not mosaic.wte.weight" in error(tmp_path / "gpt.pt")
    torch.save({"mm_lightning": {}, "state_dict": {}}, tmp_path / "ours.ckpt")
    assert "is a checkpoint of mm-lightning already" in error(tmp_path / "ours.ckpt")
    content = published(1, True)
    content["model"]["mosaic.wpe.weight"] = content["model"].pop("mosaic.h.1.attn.c_proj.bias")
    torch.save(content, tmp_path / "v1.pt")
    line = error(tmp_path / "v1.pt")
    assert "blocks.1.W_o.bias is missing (and 1 more)" in line
    llama(tmp_path / "llama")
    capsys.readouterr()
    assert "has 258 tokens, the network 50" in error(tmp_path / "llama", "--tokenizer", "bytes")
    assert "for checkpoints of v1's published code alone" in error(tmp_path / "llama", "--largest_key_exponent", "5")
    weights = tmp_path / "llama" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "model.safetensors is damaged" in error(tmp_path / "llama")
    weights.unlink()
    assert "only weights in safetensors are read" in error(tmp_path / "llama")


@pytest.mark.parametrize("file", ["config.json", "mm_lightning.json", "model.safetensors.index.json"])
def test_damaged_files_of_an_export_are_named(file, tmp_path, capsys):
    llama(tmp_path / "llama")
    import_command(str(tmp_path / "llama"), str(tmp_path / "run"))
    out = tmp_path / "out"
    assert main(["export", "--checkpoint", str(tmp_path / "run"), "--output", str(out), "--max_shard_size", "5KB"]) == 0
    capsys.readouterr()
    for content, said in (('{"wei', "is damaged: Unterminated"), ("[1]", "is damaged: it is not an object")):
        (out / file).write_text(content)
        assert main(["import", "--source", str(out), "--output", str(tmp_path / "again")]) == 2
        assert f"{file} {said}" in capsys.readouterr().err
    assert not list(tmp_path.glob("again*"))


def test_a_tokenizer_with_boundaries_of_other_names_goes_all_the_way(tmp_path, capsys):
    llama(tmp_path / "llama")
    words(tmp_path / "llama", "[CLS]", "[SEP]")
    source, names = ["--source", str(tmp_path / "llama")], ["--bos", "[CLS]", "--eos", "[SEP]"]
    assert main(["import", *source, "--output", str(tmp_path / "run")]) == 2
    assert "--bos TOKEN --eos TOKEN" in capsys.readouterr().err
    import_command(str(tmp_path / "llama"), str(tmp_path / "other"), tokenizer=words(tmp_path))
    assert main(["import", *source, "--output", str(tmp_path / "run"), *names]) == 0
    _, tokenizer = load_network(tmp_path / "run")
    assert (tokenizer.bos, tokenizer.eos, tokenizer.encode("a b")) == (0, 1, [2, 3])
    assert main(["export", "--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 0
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (exported.bos_token, exported.eos_token, exported("a b")["input_ids"]) == ("[CLS]", "[SEP]", [0, 2, 3])
    import_command(str(tmp_path / "out"), str(tmp_path / "again"))
    assert load_network(tmp_path / "again")[1].bos == 0


def test_llama_through_our_export_and_back(tmp_path):
    llama(tmp_path / "llama")
    import_command(str(tmp_path / "llama"), str(tmp_path / "first"), tokenizer=words(tmp_path))
    assert main(["export", "--checkpoint", str(tmp_path / "first"), "--output", str(tmp_path / "out")]) == 0
    import_command(str(tmp_path / "out"), str(tmp_path / "second"))
    first, second = (open_weights(find_checkpoint(tmp_path / name)) for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "out" / "README.md").read_text().count("llama, a Llama of transformers") == 1
    assert main(["generate", "--checkpoint", str(tmp_path / "second"), "--prompt", "a b", "--max_new_tokens", "3"]) == 0


def test_an_import_is_trained_on_only_from_its_weights(tmp_path, capsys):
    torch.save(published(1, False), tmp_path / "v1.pt")
    import_command(str(tmp_path / "v1.pt"), str(tmp_path / "run"))
    settings = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--data.path", str(tmp_path)]
    assert main(["fit", "--config", str(tmp_path / "run" / "config.yaml"), *settings, "--resume"]) == 2
    assert "no optimizer state to resume: start a new run with its weights" in capsys.readouterr().err

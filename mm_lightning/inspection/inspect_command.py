"""What `mm inspect` does. What it needs is imported when it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.inference.text import unescape
from mm_lightning.outputs import check_output, opened
from mm_lightning.ranges import AtLeastTwo, Count, Name, Natural, Place, Text

if TYPE_CHECKING:
    from mm_lightning.data.tokenizer import Tokenizer
    from mm_lightning.inspection.profile import Profile
    from mm_lightning.inspection.trace import Plan
    from mm_lightning.networks import Network


def inspect_command(
    checkpoint: Place,
    prompt: Text | None = None,
    file: Place | None = None,
    output: Place = "inspect.html",
    max_tokens: AtLeastTwo | None = None,
    layers: list[Natural] | None = None,
    pairs: Count | None = None,
    text: Place | None = None,
    text_tokens: AtLeastTwo = 512,
    text_documents: Count = 32,
    overwrite: bool = False,
    device: Name = "auto",
) -> None:
    r"""Write a web page that shows what each memory of a trained network reads in a text.

    The page needs no other file and no network. It keeps the pairs of largest weight of each read and says what it
    leaves out.

    Args:
        checkpoint: a run folder (its newest valid checkpoint is taken) or a checkpoint.
        prompt: the text; \n is a line end, \t a tab and \\ a backslash.
        file: a file that holds the text instead.
        output: the page to write.
        max_tokens: take so many tokens from the beginning of the text; all of it by default.
        layers: look into these blocks only, counted from 0; all by default.
        pairs: how many of the pairs of largest weight to keep of each read; by default as many as make a page of
            10 MB, between 8 and 256.
        text: documents for the figure of mean weight by distance, named as for `mm data prepare`; by default it is
            drawn from the text itself.
        text_tokens: the beginning of each of these documents that is read; shorter documents are left out.
        text_documents: how many of them.
        overwrite: replace an existing output.
        device: cpu, cuda, ...; auto takes a GPU if there is one.
    """
    content = _text(prompt, file)
    target = check_output(output, overwrite, [file, text])
    from mm_lightning.checkpoint import load_network
    from mm_lightning.inference.generate import choose_device, inference_on
    from mm_lightning.inspection.page import write_page
    from mm_lightning.inspection.trace import make_plan
    from mm_lightning.memory.retrieval import Retrieval

    place = choose_device(device)
    network, tokenizer = load_network(checkpoint, place)
    if not any(isinstance(module, Retrieval) for module in network.modules()):
        raise UserError(f"{checkpoint} has no memory that reads pairs, only states ({type(network).__name__})")
    whole = [tokenizer.bos, *tokenizer.encode(content)]
    tokens = whole[:max_tokens]
    plan = make_plan(network, len(tokens), layers, pairs)
    with inference_on(place):
        pieces = None if text is None else _pieces(text, tokenizer, text_tokens, text_documents)
        data = describe(network, tokenizer, tokens, plan, pieces)
    data |= {"title": f"Inside {checkpoint}", "checkpoint": str(checkpoint), "cut": len(whole) - len(tokens)}
    page = write_page(data)
    with opened(target) as out:
        out.write(page)
    left = f" (the first of {len(whole):,})" if len(whole) > len(tokens) else ""
    say(
        f"{target}: {len(tokens):,} tokens{left}, {len(plan.layers)} of {network.config.layers} layers, the "
        f"{plan.pairs} largest weights of each read, {len(page.encode()) / 1e6:.1f} MB"
    )


def _text(prompt: str | None, file: str | None) -> str:
    if (prompt is None) == (file is None):
        raise UserError("give the text to look at: --prompt TEXT or --file FILE, one of them")
    if prompt is not None:
        if not prompt:
            raise UserError("the prompt is empty: give a text to look at")
        return unescape(prompt)
    from mm_lightning.text_files import read_document

    return read_document(str(file))


def _pieces(text: str, tokenizer: Tokenizer, tokens: int, documents: int) -> list[list[int]]:
    """The beginnings of documents that are long enough."""
    from mm_lightning.data.corpora import Piece
    from mm_lightning.data.source_files import ReadSettings, list_files
    from mm_lightning.data.tokenize_units import documents_of

    settings = ReadSettings()
    files = list_files([text], settings)
    found: list[list[int]] = []
    for document in documents_of(files, [Piece(number) for number in range(len(files))], settings, []):
        ids = [tokenizer.bos, *tokenizer.encode(document)][:tokens]
        if len(ids) == tokens:
            found.append(ids)
        if len(found) == documents:
            break
    if not found:
        raise UserError(f"no document of {text} has {tokens} tokens: ask for fewer --text_tokens, or name other texts")
    return found


def describe(
    network: Network, tokenizer: Tokenizer, tokens: list[int], plan: Plan, pieces: list[list[int]] | None = None
) -> dict[str, Any]:
    """All that the page shows, but for names.

    Args:
        network: in evaluation mode.
        tokenizer: of the tokens.
        tokens: the document's.
        plan: what to keep.
        pieces: documents of one length for the profile; the document itself by default.
    """
    import torch

    from mm_lightning import __version__
    from mm_lightning.inspection.page import pieces_of, texts_of
    from mm_lightning.inspection.profile import Profile
    from mm_lightning.inspection.trace import trace_document, unpacked

    profile = Profile(_distances(len(pieces[0] if pieces else tokens)))
    found = trace_document(network, tokens, plan, None if pieces else profile)
    device = next(network.parameters()).device
    for piece in pieces or []:
        profile.run(network, torch.tensor([piece], device=device))
    guessed = set(unpacked(found["guesses"]).long().flatten().tolist())
    texts = texts_of(tokenizer, guessed | set(tokens))
    config = network.config
    return {
        "version": __version__,
        "network": type(network).__name__,
        "parameters": sum(p.numel() for p in network.parameters()),
        "heads": config.heads,
        "head_dim": config.head_dim,
        "all_layers": config.layers,
        "layers": list(plan.layers),
        "levels": list(config.levels),
        "pairs": plan.pairs,
        "tokens": tokens,
        "pieces": pieces_of(tokenizer, tokens, texts),
        "texts": texts,
        "profile": _profile_data(profile, pieces),
        **found,
    }


def _distances(tokens: int) -> int:
    """The last quarter of a document asks, so that its queries have three quarters of it to read."""
    return max(1, tokens - tokens // 4)


def _profile_data(profile: Profile, pieces: list[list[int]] | None) -> dict[str, Any]:
    from mm_lightning.inspection.trace import packed

    return {
        "distances": profile.distances,
        "queries": profile.queries,
        "documents": len(pieces) if pieces else 0,
        "means": {level: packed(x, "<f4") for level, x in profile.mean().items()},
    }

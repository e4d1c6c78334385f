"""The command `mm inspect`; its dependencies are imported when it runs."""

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
    from mm_lightning.inspection.trace import PageBudget
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
    r"""Write a web page that shows the pairs that each memory of a trained network reads in a text.

    The page needs no other file and no internet connection. It contains the pairs of largest weight of each read, and
    says how many are left out.

    Args:
        checkpoint: a run folder (its newest valid checkpoint is taken) or a checkpoint.
        prompt: the text; \n is a line end, \t a tab and \\ a backslash.
        file: a file that holds the text instead.
        output: the page to write.
        max_tokens: tokens from the beginning of the text; all of it by default.
        layers: include these layers only, counted from 0; all by default.
        pairs: pairs of largest weight of each read; by default as many as make a page of 10 MB, between 8 and 256.
        text: documents for the figure of mean weight by distance, named as for `mm data prepare`; by default the text
            itself.
        text_tokens: tokens from the beginning of each of these documents; shorter documents are left out.
        text_documents: number of these documents.
        overwrite: replace an existing output.
        device: cpu, cuda, ...; auto takes a GPU if there is one.
    """
    content = _text(prompt, file)
    target = check_output(output, overwrite, [file, text])
    from mm_lightning.checkpoint import load_network
    from mm_lightning.inference.generate import choose_device, inference_on
    from mm_lightning.inspection.page import write_page
    from mm_lightning.inspection.trace import page_budget
    from mm_lightning.memory.retrieval import Retrieval

    place = choose_device(device)
    network, tokenizer = load_network(checkpoint, place)
    if not any(isinstance(module, Retrieval) for module in network.modules()):
        raise UserError(f"{checkpoint} has no memory that reads pairs, only states ({type(network).__name__})")
    document = [tokenizer.bos, *tokenizer.encode(content)]
    tokens = document[:max_tokens]
    budget = page_budget(network, len(tokens), layers, pairs)
    with inference_on(place):
        profile_documents = None if text is None else _beginnings(text, tokenizer, text_tokens, text_documents)
        data = page_data(network, tokenizer, tokens, budget, profile_documents)
    data |= {"title": f"Inside {checkpoint}", "checkpoint": str(checkpoint), "cut": len(document) - len(tokens)}
    page = write_page(data)
    with opened(target) as out:
        out.write(page)
    first = f" (the first of {len(document):,})" if len(document) > len(tokens) else ""
    say(
        f"{target}: {len(tokens):,} tokens{first}, {len(budget.layers)} of {network.config.layers} layers, the "
        f"{budget.pairs} largest weights of each read, {len(page.encode()) / 1e6:.1f} MB"
    )


def _text(prompt: str | None, file: str | None) -> str:
    if (prompt is None) == (file is None):
        raise UserError("give the text to inspect: --prompt TEXT or --file FILE, one of them")
    if prompt is not None:
        if not prompt:
            raise UserError("the prompt is empty: give a text to inspect")
        return unescape(prompt)
    from mm_lightning.text_files import read_document

    return read_document(str(file))


def _beginnings(text: str, tokenizer: Tokenizer, tokens: int, documents: int) -> list[list[int]]:
    """Return the first tokens of documents that are long enough."""
    from mm_lightning.data.corpora import Piece
    from mm_lightning.data.source_files import ReadSettings, list_files
    from mm_lightning.data.tokenize_units import documents_of

    settings = ReadSettings()
    files = list_files([text], settings)
    beginnings: list[list[int]] = []
    for document in documents_of(files, [Piece(number) for number in range(len(files))], settings, []):
        ids = [tokenizer.bos, *tokenizer.encode(document)][:tokens]
        if len(ids) == tokens:
            beginnings.append(ids)
        if len(beginnings) == documents:
            break
    if not beginnings:
        raise UserError(f"no document of {text} has {tokens} tokens: ask for fewer --text_tokens, or name other texts")
    return beginnings


def page_data(
    network: Network,
    tokenizer: Tokenizer,
    tokens: list[int],
    budget: PageBudget,
    profile_documents: list[list[int]] | None = None,
) -> dict[str, Any]:
    """Return the data of the page, without its title.

    Args:
        network: in evaluation mode.
        tokenizer: of the tokens.
        tokens: of the document.
        budget: layers and pairs to include.
        profile_documents: documents of one length for the profile; the document itself by default.
    """
    import torch

    from mm_lightning import __version__
    from mm_lightning.inspection.page import pieces_of, texts_of
    from mm_lightning.inspection.profile import Profile
    from mm_lightning.inspection.trace import trace_document, unpacked

    profile = Profile(_distances(len(profile_documents[0] if profile_documents else tokens)))
    trace = trace_document(network, tokens, budget, None if profile_documents else profile)
    device = next(network.parameters()).device
    for document in profile_documents or []:
        profile.run(network, torch.tensor([document], device=device))
    guessed = set(unpacked(trace["guesses"]).long().flatten().tolist())
    texts = texts_of(tokenizer, guessed | set(tokens))
    config = network.config
    return {
        "version": __version__,
        "network": type(network).__name__,
        "parameters": sum(p.numel() for p in network.parameters()),
        "heads": config.heads,
        "head_dim": config.head_dim,
        "all_layers": config.layers,
        "layers": list(budget.layers),
        "levels": list(config.levels),
        "pairs": budget.pairs,
        "tokens": tokens,
        "pieces": pieces_of(tokenizer, tokens, texts),
        "texts": texts,
        "profile": _profile_data(profile, profile_documents),
        **trace,
    }


def _distances(tokens: int) -> int:
    """Return the distances of a profile: the queries are the last quarter of a document."""
    return max(1, tokens - tokens // 4)


def _profile_data(profile: Profile, documents: list[list[int]] | None) -> dict[str, Any]:
    from mm_lightning.inspection.trace import packed

    return {
        "distances": profile.distances,
        "queries": profile.queries,
        "documents": len(documents) if documents else 0,
        "means": {level: packed(x, "<f4") for level, x in profile.mean().items()},
    }

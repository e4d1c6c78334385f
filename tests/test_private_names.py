"""Private names of other libraries stay within a few files, which have tests of their own."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
SOURCES = sorted([*(PACKAGE / "mm_lightning").rglob("*.py"), *(PACKAGE / "callbacks").rglob("*.py")])
HOMES = {
    "mm_lightning/training/lightning_internals.py",  # Lightning, torch
    "mm_lightning/training/sharding.py",  # DeepSpeed, torch.distributed
}
ALLOWED = {
    "os._exit",  # documented
    "sys._current_frames",  # documented
    "task._instances",  # lm_eval
    "p._is_hf_initialized",  # transformers
    # operators of torch's public registry; memory/ imports nothing from above
    "torch.ops.aten._local_scalar_dense",
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu",
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward",
}
BY_NAME = ("getattr", "hasattr", "setattr", "delattr")


def private(name):
    return name.startswith("_") and not name.startswith("__")


def own_names(trees):
    """The private names that classes of the package define, or assign to `self`; overridden ones are among them."""
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node.name
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                yield node.attr
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def is_super(node):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def uses(tree, own):
    """Yield the private names of others that a source touches, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            if not ((is_self(node.value) or is_super(node.value)) and node.attr in own):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "getattr",
            "hasattr",
            "setattr",
            "delattr",
        ):
            if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) and private(str(node.args[1].value)):
                yield node.lineno, f"{ast.unparse(node.args[0])}.{node.args[1].value}"
        elif isinstance(node, ast.ImportFrom | ast.Import):
            module = getattr(node, "module", None) or ""
            for name in (part for alias in node.names for part in f"{module}.{alias.name}".split(".")):
                if private(name):
                    yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Assign):  # a method of another object replaced by a function
            for target in node.targets:
                if (
                    isinstance(node.value, ast.Lambda)
                    and isinstance(target, ast.Attribute)
                    and not is_self(target.value)
                ):
                    yield node.lineno, f"{ast.unparse(target)} = lambda"


def test_private_names_of_others_stay_within_their_homes():
    trees = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
    own = set(own_names(trees.values()))
    found = [
        f"{file}:{line}: {use}"
        for file, tree in trees.items()
        if file not in HOMES
        for line, use in uses(tree, own)
        if use not in ALLOWED
    ]
    assert not found, "\n".join(found)


def test_each_way_of_touching_a_private_name_is_seen():
    source = """
import torch._inductor
from lightning.x import _Private
from torch._y import z
trainer._signal_connector.register = 1
getattr(trainer, "_timeout", None)
strategy.save = lambda: None
self._of_a_base_class
super()._of_a_base_class()
self._own
"""
    assert len(list(uses(ast.parse(source), {"_own"}))) == 8
    assert not list(uses(ast.parse("self._own\nx.public\n__import__('y').__name__"), {"_own"}))

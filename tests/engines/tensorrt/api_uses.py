"""Which names of TensorRT's Python API a source file uses, read from its syntax tree.

Follows assignments from what the library returns (``engine = runtime.deserialize_cuda_engine(..)``)
and, where a function is handed such an object as ``Any``, the parameter's name, which is fixed by
the convention in `optimizer.engines.tensorrt.library`.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

MODULE = ""
"""The owner of what is used as ``trt.NAME``."""

PARAMETERS = {
    "trt": MODULE,
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "refitter": "Refitter",
    "timing_cache": "ITimingCache",
    "runtime_cache": "IRuntimeCache",
    "runtime_config": "IRuntimeConfig",
}
RETURNS = {
    ("Builder", "create_network"): "INetworkDefinition",
    ("Builder", "create_builder_config"): "IBuilderConfig",
    ("Builder", "create_optimization_profile"): "IOptimizationProfile",
    ("Builder", "build_serialized_network"): "IHostMemory",
    ("INetworkDefinition", "get_input"): "ITensor",
    ("INetworkDefinition", "get_output"): "ITensor",
    ("IBuilderConfig", "create_timing_cache"): "ITimingCache",
    ("IBuilderConfig", "get_timing_cache"): "ITimingCache",
    ("OnnxParser", "get_error"): "ParserError",
    ("Runtime", "deserialize_cuda_engine"): "ICudaEngine",
    ("ICudaEngine", "create_execution_context"): "IExecutionContext",
    ("ICudaEngine", "create_engine_inspector"): "EngineInspector",
    ("ICudaEngine", "create_serialization_config"): "ISerializationConfig",
    ("ICudaEngine", "create_runtime_config"): "IRuntimeConfig",
    ("IRuntimeConfig", "create_runtime_cache"): "IRuntimeCache",
}
OWN = {
    "load": MODULE,
    "deserialize": "ICudaEngine",
    "create_network": "INetworkDefinition",
}
"""Functions of this package that return a library object."""


@dataclass(frozen=True, order=True)
class Use:
    """``name`` is used on ``owner`` (a class, or `MODULE`), with ``keywords`` if it is called."""

    owner: str
    name: str
    keywords: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}" if self.owner else self.name


@dataclass(frozen=True)
class _Class:
    """The value of ``trt.NAME``: a class, whose attributes are looked up and whose calls create objects."""

    name: str


@dataclass(frozen=True)
class _Method:
    owner: str
    name: str


_Value = str | _Class | _Method | None


def uses_in(source: str) -> set[Use]:
    """Every use in a source text."""
    visitor = _Visitor()
    visitor.visit(ast.parse(source))
    return visitor.uses


def uses_in_files(paths: list[Path]) -> set[Use]:
    """Every use in some files."""
    return set().union(*(uses_in(path.read_text(encoding="utf-8")) for path in paths))


class _Visitor(ast.NodeVisitor):
    def __init__(self) -> None:
        self.uses: set[Use] = set()
        self.scopes: list[dict[str, _Value]] = [{}]
        self.members: dict[str, _Value] = {}

    # --- scopes ----------------------------------------------------------------------------------

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        scope: dict[str, _Value] = {}
        arguments = [*node.args.args, *node.args.kwonlyargs]
        for argument in arguments:
            untyped = argument.annotation is None or ast.unparse(argument.annotation) == "Any"
            scope[argument.arg] = PARAMETERS.get(argument.arg) if untyped else None
        self.scopes.append(scope)
        self.generic_visit(node)
        self.scopes.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            base_class = self._value(base)
            if isinstance(base_class, _Class):
                # A subclass of a library class: the methods it overrides must exist.
                for part in node.body:
                    if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                        self.uses.add(Use(base_class.name, part.name))
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self._value(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.scopes[-1][target.id] = value
            elif isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                # Assigning ``None`` (``self._engine = None``) does not change an object's class.
                known = self.members.get(target.attr)
                self.members[target.attr] = known if value is None else value
        self.generic_visit(node)

    # --- uses ------------------------------------------------------------------------------------

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._value(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self._value(node)
        self.generic_visit(node)

    def _value(self, node: ast.expr) -> _Value:
        if isinstance(node, ast.Name):
            return next((s[node.id] for s in reversed(self.scopes) if node.id in s), None)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        return None

    def _attribute(self, node: ast.Attribute) -> _Value:
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return self.members.get(node.attr)
        owner = self._value(node.value)
        if owner == MODULE:
            self.uses.add(Use(MODULE, node.attr))
            return _Class(node.attr)
        if isinstance(owner, _Class):
            self.uses.add(Use(owner.name, node.attr))
            return None
        if isinstance(owner, str):
            self.uses.add(Use(owner, node.attr))
            return _Method(owner, node.attr)
        return None

    def _call(self, node: ast.Call) -> _Value:
        function = self._value(node.func)
        if isinstance(function, _Class):
            return function.name
        if isinstance(function, _Method):
            keywords = tuple(sorted(k.arg for k in node.keywords if k.arg))
            if keywords:
                self.uses.add(Use(function.owner, function.name, keywords))
            return RETURNS.get((function.owner, function.name))
        if isinstance(node.func, ast.Name) and node.func.id in OWN:
            return OWN[node.func.id]
        if isinstance(node.func, ast.Name) and node.func.id == "start":
            created = self._value(node.args[1])  # start(library, trt.Builder, logger, log)
            return created.name if isinstance(created, _Class) else None
        return None


LOOKUP = """
import importlib, json, sys
trt = importlib.import_module(sys.argv[1])
missing = []
for owner, name, keywords in json.load(sys.stdin):
    holder = getattr(trt, owner, None) if owner else trt
    if not hasattr(holder, name):
        missing.append([owner, name, keywords])
        continue
    documentation = getattr(holder, name).__doc__ or ""
    missing += [[owner, name, [word]] for word in keywords if f"{word}:" not in documentation]
print(json.dumps({"version": trt.__version__, "missing": missing}))
"""
"""A program that looks uses up in a module and prints the missing ones."""

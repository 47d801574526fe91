"""Print who imports whom in a checkout, in how many layers, and how many lines each package has.

    python -m tools.import_graph [ROOT] [--package mimicry]

Imports count wherever they stand, inside a function too. A layer is as high as the longest chain of imports
below it; the modules of a circle share one.
"""

import argparse
import ast
import io
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# For each module or package, what it imports.
Graph = Mapping[str, frozenset[str]]

_NOT_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


@dataclass(frozen=True)
class Module:
    """A source file: its dotted name, its package, and what it contains."""

    name: str
    package: str
    tree: ast.Module
    lines: int
    code_lines: int

    @classmethod
    def read(cls, path: Path, root: Path) -> "Module":
        """Read the file at `path` in the checkout at `root`."""
        source = path.read_text("utf-8")
        parts = path.relative_to(root).with_suffix("").parts
        tree = ast.parse(source)
        name = ".".join(parts).removesuffix(".__init__")
        return cls(name, ".".join(parts[:-1]), tree, len(source.splitlines()), _code_lines(source, tree))

    @property
    def imports(self) -> list[tuple[str, str]]:
        """All imports, in functions too, as (module, name in it); the name is empty for `import module`."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found += [("." * node.level + (node.module or ""), alias.name) for alias in node.names]
        return found


def read_modules(root: Path, package: str) -> dict[str, Module]:
    """Return all modules of `package` in the checkout at `root`, by name."""
    modules = [Module.read(path, root) for path in sorted((root / package).rglob("*.py"))]
    return {module.name: module for module in modules}


def module_graph(modules: Mapping[str, Module]) -> dict[str, frozenset[str]]:
    """Return which of the modules each of them imports."""
    return {name: _project_imports(module, modules) for name, module in modules.items()}


def package_graph(modules: Mapping[str, Module]) -> dict[str, frozenset[str]]:
    """Return which packages the modules of each package import, its own left out."""
    graph: dict[str, set[str]] = {module.package: set() for module in modules.values()}
    for name, imports in module_graph(modules).items():
        own = modules[name].package
        graph[own] |= {modules[other].package for other in imports} - {own}
    return {name: frozenset(imports) for name, imports in graph.items()}


def circles(graph: Graph) -> list[list[str]]:
    """Return the groups of names that import each other, directly or through others."""
    reached = {name: _reached(graph, name) for name in graph}
    groups = {
        frozenset(other for other in reached[name] if name in reached[other])
        for name in graph
        if name in reached[name]
    }
    return sorted(sorted(group) for group in groups)


def longest_chain(graph: Graph) -> list[str]:
    """Return the longest chain of imports, from the top down; of a circle it has one name."""
    reached = {name: _reached(graph, name) for name in graph}
    chains: dict[str, list[str]] = {}

    def chain(name: str) -> list[str]:
        if name not in chains:
            # The whole circle that this name is in, or the name alone: what any of them imports is below.
            circle = {name} | {other for other in reached[name] if name in reached[other]}
            below = sorted({other for member in circle for other in graph[member]} - circle)
            chains[name] = [name, *max((chain(other) for other in below), key=len, default=[])]
        return chains[name]

    return max((chain(name) for name in sorted(graph)), key=len, default=[])


def report(modules: Mapping[str, Module]) -> str:
    """Return what the program prints about the modules."""
    graph, packages = module_graph(modules), package_graph(modules)
    chain = longest_chain(graph)
    rows = [
        ("package", "modules", "lines", "code"),
        *(_row(name, (m for m in modules.values() if m.package == name)) for name in sorted(packages)),
        _row("all", modules.values()),
    ]
    width = max(len(row[0]) for row in rows)
    return "\n".join(
        [
            f"modules: {len(graph)}",
            f"layers: {len(chain)}",
            f"arrows between modules: {_arrows(graph)}",
            f"arrows between packages: {_arrows(packages)}",
            f"circles of modules: {_listed(circles(graph))}",
            f"circles of packages: {_listed(circles(packages))}",
            f"longest chain: {' > '.join(chain)}",
            "",
            *(f"{name:{width}} {count:>8} {lines:>6} {code:>6}" for name, count, lines, code in rows),
        ]
    )


def _project_imports(module: Module, modules: Mapping[str, Module]) -> frozenset[str]:
    found = set()
    for imported, member in module.imports:
        full = f"{imported}.{member}"
        # `from package import module` imports the module, `from module import name` the module alone.
        found.add(full if full in modules else imported)
    return frozenset(found & modules.keys()) - {module.name}


def _code_lines(source: str, tree: ast.Module) -> int:
    """Count the lines that are not blank, comment or docstring."""
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NOT_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and ast.get_docstring(node) is not None:
                code.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(code)


def _reached(graph: Graph, start: str) -> set[str]:
    """Return everything that `start` imports, directly or through others."""
    reached: set[str] = set()
    left = list(graph[start])
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            left += graph[name]
    return reached


def _arrows(graph: Graph) -> int:
    return sum(map(len, graph.values()))


def _listed(groups: list[list[str]]) -> str:
    return "; ".join(", ".join(group) for group in groups) or "none"


def _row(name: str, modules: Iterable[Module]) -> tuple[str, str, str, str]:
    found = list(modules)
    lines, code = sum(module.lines for module in found), sum(module.code_lines for module in found)
    return name, str(len(found)), str(lines), str(code)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", nargs="?", type=Path, default=Path(), help="The checkout (default: here).")
    parser.add_argument("--package", default="mimicry")
    options = parser.parse_args(words)
    modules = read_modules(options.root, options.package)
    if not modules:
        parser.error(f"there is no Python file in {options.root / options.package}; name a checkout")
    print(report(modules))


if __name__ == "__main__":
    main()

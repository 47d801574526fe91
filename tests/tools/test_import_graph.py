"""The import graph of a small checkout, counted by hand."""

from pathlib import Path

import pytest

from tools.import_graph import circles, longest_chain, main, module_graph, package_graph, read_modules

FILES = {
    "shop/__init__.py": '"""A shop."""\n',
    "shop/till.py": (
        '"""Takes money."""\n\nimport json\n\nfrom shop.stock import shelves\n\n\n'
        'def sell() -> str:\n    """Sell.\n\n    All of it.\n    """\n'
        "    # Late, because it is slow.\n    from shop.paper import print_bill as printed\n\n"
        '    return f"""{printed()}\n# not a comment\n{json}"""\n'
    ),
    "shop/paper.py": "import shop.stock.shelves\n\n\ndef print_bill() -> None: ...\n",
    "shop/stock/__init__.py": "",
    "shop/stock/shelves.py": "from shop.stock.boxes import BOX\n",
    "shop/stock/boxes.py": "BOX = 1\n",
}


def checkout(tmp_path: Path, **changes: str) -> Path:
    for name, content in (FILES | changes).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


def test_it_finds_each_import_once(tmp_path: Path) -> None:
    modules = read_modules(checkout(tmp_path), "shop")

    graph = module_graph(modules)

    assert {name: set(imports) for name, imports in graph.items() if imports} == {
        "shop.till": {"shop.stock.shelves", "shop.paper"},
        "shop.paper": {"shop.stock.shelves"},
        "shop.stock.shelves": {"shop.stock.boxes"},
    }
    assert package_graph(modules) == {"shop": {"shop.stock"}, "shop.stock": set()}
    assert longest_chain(graph) == ["shop.till", "shop.paper", "shop.stock.shelves", "shop.stock.boxes"]
    assert circles(graph) == []


def test_a_circle_is_one_layer(tmp_path: Path) -> None:
    boxes = {"shop/stock/boxes.py": "def empty():\n    from shop.till import sell\n"}
    graph = module_graph(read_modules(checkout(tmp_path, **boxes), "shop"))

    assert circles(graph) == [["shop.paper", "shop.stock.boxes", "shop.stock.shelves", "shop.till"]]
    assert len(longest_chain(graph)) == 1


def test_lines_of_code_are_not_blank_or_comment_or_docstring(tmp_path: Path) -> None:
    modules = read_modules(checkout(tmp_path), "shop")

    assert {name.removeprefix("shop."): (m.lines, m.code_lines) for name, m in modules.items()} == {
        "shop": (1, 0),
        "till": (18, 7),
        "paper": (4, 2),
        "stock": (0, 0),
        "stock.shelves": (1, 1),
        "stock.boxes": (1, 1),
    }


def test_the_program_prints_it_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(checkout(tmp_path)), "--package=shop"])

    lines = capsys.readouterr().out.splitlines()
    assert lines[:6] == [
        "modules: 6",
        "layers: 4",
        "arrows between modules: 4",
        "arrows between packages: 1",
        "circles of modules: none",
        "circles of packages: none",
    ]
    assert [line.split() for line in lines[8:]] == [
        ["package", "modules", "lines", "code"],
        ["shop", "3", "23", "9"],
        ["shop.stock", "3", "2", "2"],
        ["all", "6", "25", "11"],
    ]


def test_a_folder_without_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path)])
    assert end.value.code == 2

"""The size of the project: files, lines and lines of code per package, and the submission's cells: `make lines`."""

from __future__ import annotations

import ast
import json

from checkout import ROOT

ROOMS = ("reasonkit", "recipes", "tools", "data_recipes", "notebooks", "tests", "benchmarks")


def code_lines(source: str) -> int:
    """Lines with code: neither blank, nor a comment only, nor in a docstring."""
    written = {n for n, line in enumerate(source.splitlines(), 1) if line.strip() and not line.lstrip().startswith("#")}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            written -= set(range(node.lineno, node.end_lineno + 1))
    return len(written)


def main() -> None:
    print("| room | files | lines | of code |\n|---|---|---|---|")
    for room in ROOMS:
        texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / room).rglob("*.py"))]
        if texts:
            print(f"| {room} | {len(texts)} | {sum(len(text.splitlines()) for text in texts):,} | "
                  f"{sum(map(code_lines, texts)):,} |")
    cells = json.loads((ROOT / "notebooks/submission.ipynb").read_text(encoding="utf-8"))["cells"]
    written = ["".join(cell["source"]) for cell in cells]
    library = [text.split("\n#### ") for text in written if text.startswith("%%files")]
    print(f"\nsubmission: {len(cells)} cells, {len(library)} of them of the library, with "
          f"{sum(len(files) - 1 for files in library)} files of "
          f"{sum(len(text.splitlines()) - 1 for files in library for text in files[1:]):,} lines")



if __name__ == "__main__":
    main()

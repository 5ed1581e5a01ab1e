"""For the API reference: ``research.evaluate`` is the function, as it is when imported.

A command has a module of the same name, which a reader of the files takes for the attribute.
"""

from __future__ import annotations

from typing import Any

import griffe


class FunctionsFirst(griffe.Extension):
    """Puts the functions of a package back in the place that its modules have taken."""

    def __init__(self) -> None:
        self.functions: list[griffe.Function] = []

    def on_function_instance(self, *, func: griffe.Function, **others: Any) -> None:
        """Remember a function of the package itself, before its modules are read."""
        if func.parent is not None and func.parent.path == "research":
            self.functions.append(func)

    def on_package(self, *, pkg: griffe.Module, **others: Any) -> None:
        """Put them back, after all modules have been read."""
        for function in self.functions:
            pkg.members[function.name] = function

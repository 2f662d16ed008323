"""What mkdocs does besides rendering docs/: pages of the API, pages from elsewhere in the tree, formulas as MathML."""

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "benchmarks.md": "benchmarks/README.md",
    "growth.png": "benchmarks/growth.png",
    "sampling.md": "benchmarks/SAMPLING.md",
    "time_to_quality.md": "benchmarks/TIME_TO_QUALITY.md",
    "pareto.md": "benchmarks/PARETO.md",
    "autoencoders.md": "benchmarks/AUTOENCODERS.md",
    "text_to_image_table.md": "benchmarks/TEXT_TO_IMAGE.md",
    "tpu_programs.md": "benchmarks/TPU.md",
    "stable_diffusion_speed.md": "benchmarks/STABLE_DIFFUSION.md",
    "solvers.md": "gen_jax/samplers/README.md",
    "recommended.md": "gen_jax/samplers/RECOMMENDED.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "digits.png": "checkpoints/pretrained/step09_samples.png",
}
"""Place in the site, and the file in the tree that is shown there."""


class Shapes(griffe.Extension):
    """Annotations of jaxtyping as they are written: the string of `Float[Array, "B H W C"]` is no type to be parsed."""

    def on_function_instance(self, *, node: ast.AST, func: griffe.Function, **options: object) -> None:
        """Puts the text of the source in the place of what griffe made of it."""
        if not isinstance(node, ast.FunctionDef):
            return
        arguments = node.args
        given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        for argument in given:
            if has_shape(argument.annotation):
                func.parameters[argument.arg].annotation = written(argument.annotation)
        if has_shape(node.returns):
            func.returns = written(node.returns)


def has_shape(annotation: ast.expr | None) -> bool:
    """Whether a string stands second in brackets, as in `Float[Array, "B"]`."""
    found = () if annotation is None else ast.walk(annotation)
    brackets = [
        n.slice.elts for n in found if isinstance(n, ast.Subscript) and isinstance(n.slice, ast.Tuple)
    ]
    return any(
        isinstance(n, ast.Constant) and isinstance(n.value, str) for each in brackets for n in each[1:2]
    )


def written(annotation: ast.expr) -> str:
    """The source of an annotation, in double quotes."""
    return ast.unparse(annotation).replace("'", '"')


class Shadowed(griffe.Extension):
    """A function that a package exports is shown, not the module of the same name that it comes from."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **options: object) -> None:
        """Puts the function in the module's place, in `pkg` and all packages below it."""
        loader.resolve_aliases()
        for module in [pkg, *below(pkg)]:
            for name in module.exports or ():
                inner = module.members.get(str(name))
                if isinstance(inner, griffe.Module) and module.imports.get(name) == f"{inner.path}.{name}":
                    module.set_member(str(name), griffe.Alias(str(name), inner[name], parent=module))


def below(module: griffe.Module) -> Iterator[griffe.Module]:
    """All modules inside a package."""
    for child in list(module.modules.values()):
        if not child.is_alias:
            yield child
            yield from below(child)


def public(module: griffe.Module) -> Iterator[str]:
    """Dotted names of what has a page: modules without underscore; of a package with `__all__`, it and what it lists."""
    own = {name: m for name, m in sorted(module.modules.items()) if not m.is_alias}
    children = {name: m for name, m in own.items() if not name.startswith("_")}
    if module.exports is not None or not children:
        yield module.path
        children = {name: m for name, m in children.items() if name in (module.exports or ())}
    for child in children.values():
        yield from public(child)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fills in the section API of the navigation."""
    package = griffe.load("gen_jax", search_paths=[ROOT], extensions=griffe.load_extensions(Shadowed))
    config["api"] = [name for name in public(package) if name != "gen_jax"]
    for section in config.nav or ():
        if "API" in section:
            section["API"] += [
                {name.removeprefix("gen_jax."): f"api/{name.removeprefix('gen_jax.')}.md"}
                for name in config["api"]
            ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the API, the presets, and pages from elsewhere in the tree."""
    for name in config["api"]:
        files.append(
            File.generated(config, f"api/{name.removeprefix('gen_jax.')}.md", content=f"::: {name}\n")
        )
    files.append(File.generated(config, "presets.md", content=presets()))
    for place, source in ELSEWHERE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def presets() -> str:
    """A page of what the presets say of themselves: command, machine, time and result."""
    page = "# Presets\n\nOne file for each in `experiments/configs/`; `--preset NAME` chooses.\n"
    for path in sorted((ROOT / "experiments/configs").glob("step*_*.py")):
        step, _, name = path.stem.partition("_")
        said = ast.get_docstring(ast.parse(path.read_text()))
        page += f"\n## Step {int(step.removeprefix('step'))}, {name}\n\n{said}\n"
    return page


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    r"""Formulas, `\(...\)` and `\[...\]`, as MathML, which browsers show without any script."""
    spaced = lambda tex: re.sub(r"\\(log|exp|det)\b", r"\,\\\1\,", html.unescape(tex))
    shown = lambda display: lambda found: convert(spaced(found[1]), display=display)
    content = re.sub(
        r'<span class="arithmatex">\\\((.*?)\\\)</span>', shown("inline"), content, flags=re.DOTALL
    )
    return re.sub(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', shown("block"), content, flags=re.DOTALL)

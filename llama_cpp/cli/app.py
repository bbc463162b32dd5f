"""The commands and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="llama-cpp", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Run GGUF models with llama.cpp.",
)  # fmt: skip


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from ..capi import llama_common_c as native

        print(f"llama-cpp-python {version('llama_cpp_python')}, llama.cpp {(native.llama_common_commit() or b'').decode()[:12]}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    """Run GGUF models with llama.cpp."""


@app.command()
def chat(
    model: Annotated[str, typer.Option("--model", "-m", help="A GGUF file, or smollm2 for the small sample.")] = "smollm2",
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Answer this once and exit.")] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="System message.")] = None,
    n_ctx: Annotated[int, typer.Option(min=0, help="Tokens of context; 0 is what the model was trained with.")] = 8192,
    n_gpu_layers: Annotated[int, typer.Option(min=-1, help="Layers on the GPU; -1 is all.")] = -1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float, typer.Option(help="0 always takes the most probable token.")] = 0.2,
    seed: Annotated[int | None, typer.Option(help="Makes an answer repeatable.")] = None,
    stats: Annotated[bool, typer.Option(help="Show speed figures.")] = True,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the engine's log.")] = False,
) -> None:
    """Talk to a model. With --prompt, or with text piped in, answer once; otherwise hold a conversation."""
    from .chat import ChatSettings, run

    settings = ChatSettings(
        model=model, system=system, n_ctx=n_ctx, n_gpu_layers=n_gpu_layers, threads=threads, max_tokens=max_tokens,
        temperature=temperature, seed=seed, stats=stats, verbose=verbose,
    )  # fmt: skip
    run(settings, prompt)


@app.command()
def models() -> None:
    """Fetch the sample model if it is not there, and print its path."""
    from ..models.download import sample_model

    print(sample_model())


@app.command()
def devices() -> None:
    """List what the installed backends can compute on."""
    from rich.console import Console
    from rich.table import Table

    from ..capi import backends
    from ..fit.devices import devices as list_devices

    table = Table("device", "hardware", "kind", "free GiB", "total GiB")
    for device in list_devices():
        free, total = (f"{n / 2**30:.1f}" for n in (device.memory_free, device.memory_total))
        table.add_row(device.name, device.description, device.kind, free, total)
    console = Console()
    console.print(table)
    for plugin in backends.report.loaded:
        console.print(f"loaded {Path(plugin).name}", highlight=False)

"""The ``builder convert`` command: options in, the use case called, results printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from builder.conversion.convert import Converted
    from builder.conversion.order import ConvertOrder

_PATH = click.Path(path_type=Path)
_EXAMPLES = """\b
Examples:
  builder convert TeleChat2-7B telechat2_7b.ckpt --to mindformers-r1
  builder convert kv.ckpt qkv.ckpt --to mindformers-r1 --qkv-concat --model telechat2_7b
  builder convert telechat2_7b.ckpt hf_folder --to hf --model telechat2_7b
  builder convert output/checkpoint merged --strategy output/strategy
  builder convert TeleChat2-7B ranks --to mindformers-r1 --qkv-concat --ranks 2
  builder convert Llama-2-13b hf_folder --to hf --format bin --dtype float16"""


def _size(context: click.Context, parameter: click.Parameter, value: str) -> int:
    from builder.conversion.order import parse_size

    try:
        return parse_size(value)
    except ValueError:
        message = f"{value!r} is not a size; write 5GB, 512MiB or a number of bytes"
        raise click.BadParameter(message, context, parameter) from None


@click.command("convert", epilog=_EXAMPLES)
@click.argument("source", type=_PATH)
@click.argument("target", type=_PATH)
@click.option(
    "--to",
    type=click.Choice(("hf", "mindformers", "mindformers-r1", "meta", "bmtrain")),
    help="Names and packing of the result: HuggingFace's, mindformers 2.x's or 1.x's, Meta's, bmtrain's.  "
    "[default: as they are]",
)
@click.option(
    "--model",
    help="Which model it is: a known one, a recipe.yaml or a HuggingFace folder.  "
    "[default: the config.json beside SOURCE]",
)
@click.option(
    "--format",
    type=click.Choice(("safetensors", "ckpt", "bin")),
    help="File format.  [default: by TARGET's suffix, else ckpt for mindformers-r1 and ranks, bin for meta "
    "and bmtrain, safetensors otherwise]",
)
@click.option(
    "--qkv-concat/--kv-concat",
    default=None,
    help="For mindformers-r1: queries, keys and values in one tensor, and gate and up, or apart.  "
    "[default: as the family's own script writes them]",
)
@click.option("--gmm", is_flag=True, help="For mindformers-r1: experts as its grouped product wants them.")
@click.option(
    "--dtype",
    type=click.Choice(("bfloat16", "float16", "float32")),
    help="Convert the weights.  [default: as they are]",
)
@click.option(
    "--max-shard-size",
    "max_shard_bytes",
    default="5GB",
    show_default=True,
    callback=_size,
    help="Of safetensors and bin files.",
)
@click.option("--ranks", type=click.IntRange(min=1), help="Share the weights among so many rank_N folders.")
@click.option("--vocab-emb-dp", is_flag=True, help="With --ranks: every rank gets the whole embedding.")
@click.option("--strategy", type=_PATH, help="MindSpore's strategy files of SOURCE: merged file or folder.")
@click.option("--target-strategy", type=_PATH, help="Share the weights among ranks as these files say.")
@click.option("--allow-nonfinite", is_flag=True, help="Keep infinite and NaN weights as they are.")
@click.option("--replace", is_flag=True, help="Overwrite TARGET.")
@click.option("--dry-run", is_flag=True, help="Check everything, show the files, write nothing.")
@click.option("--discard", is_flag=True, help="Do all the work, count and hash the result, keep nothing.")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no notes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def convert(quiet: bool, as_json: bool, **options: Any) -> None:
    """Write the checkpoint SOURCE in another form. TARGET is a folder or one file.

    Reads safetensors, torch .bin, .pth and .pt, MindSpore .ckpt, rank_N folders and Meta's consolidated
    files. Weights are the same bits unless --dtype asks for others. After an interruption the same command
    goes on behind the last finished file.
    """
    from builder.conversion.convert import convert as run
    from builder.conversion.order import ConvertOrder
    from builder.progress import Progress
    from builder.report import print_json, remark

    order = ConvertOrder(**options)
    try:
        result = run(order, Progress(quiet or as_json))
    except KeyboardInterrupt:
        remark("interrupted; the same command goes on behind the finished files")
        raise SystemExit(130) from None
    if as_json:
        print_json(_result_dict(order, result))
    else:
        _print_result(order, result, quiet)


def _files(result: Converted) -> list[dict[str, Any]]:
    if result.status == "planned":
        return [{"name": file.name, "size": file.most_bytes} for file in result.files.weights]
    return [
        {"name": name, "size": entry.size, "sha256": entry.sha256, "resumed": name in result.resumed}
        for name, entry in sorted(result.entries.items())
    ]


def _result_dict(order: ConvertOrder, result: Converted) -> dict[str, Any]:
    return {
        "status": result.status,
        "source": str(order.source),
        "target": str(order.target),
        "found": result.conversion.found,
        "tensors": sum(map(len, result.conversion.ranks)),
        "bytes": sum(file.tensor_bytes for file in result.files.weights),
        "left_out": list(result.conversion.left_out),
        "files": _files(result),
    }


def _print_result(order: ConvertOrder, result: Converted, quiet: bool) -> None:
    from builder.checkpoints.layouts.detect import listed
    from builder.forecast import size_text
    from builder.report import remark, say

    if not quiet:
        remark(f"found {order.source}: {result.conversion.found}")
        if result.conversion.left_out:
            remark(f"note: left out, no weights: {listed(result.conversion.left_out)}")
        if result.resumed:
            remark(f"note: {len(result.resumed)} files were finished by an earlier run")
    total = size_text(sum(file.tensor_bytes for file in result.files.weights))
    tensors = sum(map(len, result.conversion.ranks))
    if result.status == "converted":
        say(f"wrote {order.target} ({tensors} tensors, {total})")
        return
    for file in _files(result):
        say(f"  {file.get('sha256') or ''}  {size_text(file['size']):>12}  {file['name']}".rstrip())
    did = "would write" if result.status == "planned" else "read, converted and hashed"
    say(f"{did} {tensors} tensors, {total}; nothing was written.")

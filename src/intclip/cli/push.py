"""`intclip push`."""

from typing import Annotated

import typer


def push(
    model: Annotated[str, typer.Argument(help="Folder of a bundle or of a training run.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    license: Annotated[str | None, typer.Option(help="Licence for the model card, such as cc-by-4.0.")] = None,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
) -> None:
    """Upload a trained model to the Hugging Face hub.

    A model card is generated. Log in once with `hf auth login`. Every command accepts the model as hf://OWNER/NAME.

    Examples:

    intclip push runs/mine me/my-intents --license cc-by-4.0

    intclip predict holiday/ --model hf://me/my-intents
    """
    from intclip.inference.push import push as upload

    print(upload(model, repository, private=private, license=license, message=message))

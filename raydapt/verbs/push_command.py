"""``raydapt push`` as a command; what it does is in `raydapt.verbs.push`."""

import click


@click.command()
@click.argument("what", metavar="RUN")
@click.argument("repository")
@click.option("--folder", help="Where the files are written first; the default is a folder beside RUN.")
@click.option("--public", is_flag=True, help="Let everybody see the repository; the default is private.")
def push(what: str, repository: str, folder: str | None, public: bool) -> None:
    """Puts a run on the Hugging Face hub with its measured figures, or stored captions or synthetic images.

    RUN is the folder of a finished run, which becomes a model, or of captions or synthetic images in the store, which
    become a data set. Without a network the folder is written, and a sentence says how to send it later.
    """
    from raydapt.verbs.push import push as push_

    click.echo(push_(what, repository, folder=folder, public=public))

"""pypiserver, as published, with the packages of one instance; anybody may upload."""

import pypiserver


def create_app(context):
    folder = context.data_dir / "packages"
    folder.mkdir(exist_ok=True)
    return pypiserver.app(roots=[folder], authenticate=[], password_file=".")

"""The page: a line for a sentence, and what base and refined find. Flask serves it to this machine alone."""

from __future__ import annotations

from flask import Flask, Response, abort, render_template, request

from pipeline_lib.core.paths import MODELS
from pipeline_lib.search.pictures import Pictures

SHOWN = 12
LONGEST = 1_000  # characters of a sentence


def make_app(pictures: Pictures) -> Flask:
    """Make the application over some images."""
    app = Flask(__name__)
    app.config["TRUSTED_HOSTS"] = ["localhost", "127.0.0.1"]  # no other site's name may lead here

    @app.get("/")
    def page() -> str:
        query = request.args.get("query", "").strip()[:LONGEST]
        found = pictures.search(query, SHOWN) if query else {}
        return render_template("search.html", query=query, found=found, models=MODELS, total=len(pictures))

    @app.get("/image/<int:row>")
    def image(row: int) -> Response:
        if row >= len(pictures):
            abort(404)
        return Response(pictures.thumbnail(row), mimetype="image/jpeg", headers={"Cache-Control": "max-age=3600"})

    return app

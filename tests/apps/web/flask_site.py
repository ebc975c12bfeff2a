"""A Flask app object and the factory that Flask's own tutorial teaches."""

from flask import Flask, request


def create_app(test_config=None):
    app = Flask(__name__)
    app.config.from_object("flask_settings")

    @app.get("/")
    def hello():
        return f"{app.config['GREETING']} from flask"

    @app.post("/echo")
    def echo():
        return request.get_data()

    @app.get("/path")
    def path():
        return {"script": request.script_root, "path": request.path, "headers": sorted(dict(request.headers))}

    return app


app = create_app()

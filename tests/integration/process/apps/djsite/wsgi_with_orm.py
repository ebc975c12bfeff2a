"""A WSGI module that uses the ORM as it is imported, as many do to read their settings from a table."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "djsite.settings")
application = get_wsgi_application()

from django.db import connection  # noqa: E402

with connection.cursor() as cursor:
    cursor.execute("SELECT 40 + 2")
    assert cursor.fetchone() == (42,)

"""Posts in Django's admin."""

from django.contrib import admin

from board.models import Post

admin.site.register(Post)

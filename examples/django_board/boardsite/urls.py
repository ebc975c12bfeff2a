"""The board and Django's admin."""

from board import views
from django.contrib import admin
from django.urls import path

urlpatterns = [path("admin/", admin.site.urls), path("", views.posts)]

from board.views import about, notes, posts
from django.urls import path

urlpatterns = [path("posts", posts), path("notes", notes), path("about", about, name="about")]

from board.views import posts
from django.urls import path

urlpatterns = [path("posts", posts)]

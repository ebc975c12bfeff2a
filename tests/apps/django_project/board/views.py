import os

from django.http import HttpResponse, JsonResponse
from django.urls import reverse

from board.models import Post


def posts(request):
    if request.method == "POST":
        Post.objects.create(text=request.body.decode())
    return JsonResponse({"posts": list(Post.objects.values_list("text", flat=True))})


def notes(request):
    if request.method == "POST":
        Post.objects.create(text=request.body.decode())
        return HttpResponse(status=201)
    return JsonResponse(list(Post.objects.values_list("text", flat=True)), safe=False)


def about(request):
    return JsonResponse({"motto": os.environ.get("MOTTO", ""), "self": reverse("about"), "pid": os.getpid()})

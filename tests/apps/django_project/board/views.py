from django.http import JsonResponse

from board.models import Post


def posts(request):
    if request.method == "POST":
        Post.objects.create(text=request.body.decode())
    return JsonResponse({"posts": list(Post.objects.values_list("text", flat=True))})

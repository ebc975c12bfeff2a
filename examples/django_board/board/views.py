"""The board's one page."""

from django.http import JsonResponse
from django.views.decorators.csrf import csrf_exempt

from board.models import Post


@csrf_exempt
def posts(request):
    if request.method == "POST":
        Post.objects.create(text=request.POST["text"])
    return JsonResponse({"posts": list(Post.objects.values_list("text", flat=True))})

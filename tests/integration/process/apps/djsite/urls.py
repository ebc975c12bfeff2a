from django.contrib.auth.models import User
from django.core.management import call_command
from django.http import JsonResponse
from django.urls import path


def users(request):
    call_command("migrate", verbosity=0)
    User.objects.create_user(f"u{User.objects.count()}")
    return JsonResponse({"users": User.objects.count()})


urlpatterns = [path("users", users)]

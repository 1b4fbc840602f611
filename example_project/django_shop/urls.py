"""The project's URLs."""

from __future__ import annotations

from django.urls import path

from example_project.django_shop import views

urlpatterns = [
    path("pay/<int:payment>", views.pay),
    path("sync/<account>", views.sync),
    path("prices/reload", views.reload_prices),
]

"""Tests of telling voices from noise."""

"""Run the test suites of other projects with our kernel under the name `python3`. `scripts/foreign` runs it."""

"""Comparing methods at equal budgets: statistics, tables, figures."""

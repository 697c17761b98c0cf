"""Seeded wrong and hostile inputs; each must be taken with a right result, or refused well."""

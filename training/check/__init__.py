"""Checks of credit by enumeration: small worlds in which every trajectory can be listed."""

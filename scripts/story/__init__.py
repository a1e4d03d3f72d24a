"""The quickstart's story: small models trained for real, and a delta moved between them."""

"""A drawing kit: pages, tables and charts. It knows nothing of gates or records, and imports only errors, registry and io."""

"""Which composition to take: what can win on given adapters, tried within given minutes. Imports comparison and what lies below."""

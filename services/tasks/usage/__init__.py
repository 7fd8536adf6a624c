"""What tenants have used, summed up by day, tenant, type, provider, model and device."""

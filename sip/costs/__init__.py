"""What programs cost: chips, flops of jaxprs, bytes and collectives of HLO, rooflines."""

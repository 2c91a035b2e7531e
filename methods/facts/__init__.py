"""What the amplified and sampled texts of finished runs state, as short claims with counts on both sides."""

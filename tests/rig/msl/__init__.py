"""Metal Shading Language on the CPU: translator, checks, compile driver and host."""

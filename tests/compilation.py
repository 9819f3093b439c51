"""How the tests, and processes that they start, compile."""

# Compiles tiny networks in half to a third of the time.
XLA_FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

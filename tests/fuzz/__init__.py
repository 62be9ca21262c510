"""What the native programs read of others, fuzzed by libFuzzer: `make fuzz SECONDS=60`.

Each `harness_NAME.c` includes a program's source, with the ends of its surroundings replaced
(`fuzz.h`), and is compiled with clang's fuzzer and its sanitizers of addresses and of undefined
behaviour. It states in C what is accepted and refused, so a fault shows also where no memory is
touched. `corpus/NAME` are inputs that came to something once, below a kilobyte each: the ordinary
tests replay them and go on from there for a moment, always the same way (`test_corpus.py`).
"""

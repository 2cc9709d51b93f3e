/* `dsv4 synth`: a checkpoint of random weights in the released layout, of any geometry and size. */
#ifndef DSV4_SYNTH_H
#define DSV4_SYNTH_H

/* The command: argv[0] is its name. 0, or 2 when it cannot run; then nothing is left behind. */
int dsv4_synth_main(int argc, char **argv);

#endif

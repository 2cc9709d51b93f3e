/* dsv4 logits: a forward pass over given token ids. */
#ifndef DSV4_LOGITS_H
#define DSV4_LOGITS_H

/* The exit code: 0, or 2 when the model cannot be run. */
int dsv4_logits_main(int argc, char **argv);

#endif

/* The memory that there is: the machine's, or less, where a control group that this process is in
 * (that of a container, or of a service) has a limit. */
#ifndef DSV4_MEMORY_H
#define DSV4_MEMORY_H

/* Bytes; 0 where the system does not say. */
typedef struct {
    double total;     /* that this process could have */
    double available; /* that it could have now, without swapping: what is read from files can go */
} dsv4_memory;

/* As the system's files tell it: /proc and what is mounted, all of it under `root`, which is "" for
 * this system. */
dsv4_memory dsv4_memory_under(const char *root);

/* Of this system. */
double dsv4_memory_total(void);
double dsv4_memory_available(void);

#endif

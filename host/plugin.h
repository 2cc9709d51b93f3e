/* An engine in a shared library: vectors/dsv4_plugin.h. */
#ifndef DSV4_PLUGIN_HOST_H
#define DSV4_PLUGIN_HOST_H

#include "engine.h"

/* The library is loaded in child processes only. -1 with one line where it is no plugin. */
int dsv4_plugin_engine(dsv4_engine *engine, const char *path, double timeout, dsv4_error *err);

#endif

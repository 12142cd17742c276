/* status.c - the one error channel: a code and a message, set where the fault is seen.
 *
 * The first fault wins: what fails afterwards is usually its echo. Knows nothing about Python; the
 * binding turns a status into an exception in one place. */
#include <stdarg.h>
#include <stdio.h>

#include "../r1.h"

r1_code
r1_status_set(r1_status *st, r1_code code, const char *format, ...)
{
    if (st != NULL && st->code == R1_OK) {
        va_list args;
        va_start(args, format);
        vsnprintf(st->message, sizeof st->message, format, args);
        va_end(args);
        st->code = code;
    }
    return code;
}

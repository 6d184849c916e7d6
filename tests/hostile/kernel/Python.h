/* Stands in for Python's header: what the rANS kernel takes from it, in a few lines of C.
 *
 * With it the kernel runs without Python, on any machine that a compiler knows, and under
 * sanitizers and emulators. Arguments come as an array of `Argument`; capsules are what they hold.
 */
#ifndef STAND_IN_FOR_PYTHON
#define STAND_IN_FOR_PYTHON

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef ptrdiff_t Py_ssize_t;
#define PY_SSIZE_T_MAX PTRDIFF_MAX

typedef struct {
    int unused;
} PyObject;

typedef struct {
    void *buf;
    Py_ssize_t len;
} Py_buffer;

typedef union {
    PyObject *object;
    Py_buffer view;
    Py_ssize_t number;
} Argument;

typedef PyObject *(*PyCFunction)(PyObject *, PyObject *);
typedef void (*PyCapsule_Destructor)(PyObject *);

typedef struct {
    const char *name;
    PyCFunction function;
    int flags;
    const char *doc;
} PyMethodDef;

struct PyModuleDef_Slot {
    int slot;
    void *value;
};

struct PyModuleDef {
    int base;
    const char *name, *doc;
    Py_ssize_t size;
    PyMethodDef *methods;
    struct PyModuleDef_Slot *slots;
    void *traverse, *clear, *free;
};

#define METH_VARARGS 1
#define PyModuleDef_HEAD_INIT 0
#define PyMODINIT_FUNC PyObject *
#define Py_BEGIN_ALLOW_THREADS {
#define Py_END_ALLOW_THREADS }
#define Py_RETURN_NONE return returned = 0, &an_object

static PyObject an_object;
static PyObject *const PyExc_ValueError = &an_object;
static long returned; /* what the last call of the kernel returned; of nothing, 0 */
static int refused;   /* whether it raised */

static inline PyObject *PyErr_Format(PyObject *kind, const char *format, ...)
{
    (void)kind, (void)format;
    refused = 1;
    return NULL;
}

static inline PyObject *PyErr_NoMemory(void)
{
    fprintf(stderr, "not enough memory\n");
    abort();
}

static inline PyObject *PyCapsule_New(void *pointer, const char *name,
                                      PyCapsule_Destructor destructor)
{
    (void)name, (void)destructor;
    return pointer;
}

static inline void *PyCapsule_GetPointer(PyObject *capsule, const char *name)
{
    (void)name;
    return capsule;
}

static inline int PyCapsule_IsValid(PyObject *capsule, const char *name)
{
    (void)name;
    return capsule != NULL;
}

static inline PyObject *PyLong_FromLong(long value)
{
    returned = value;
    return &an_object;
}

static inline void PyBuffer_Release(Py_buffer *view)
{
    (void)view;
}

static inline int PyArg_ParseTuple(PyObject *arguments, const char *format, ...)
{
    const Argument *next = (const Argument *)(const void *)arguments;
    va_list targets;
    va_start(targets, format);
    for (; *format; format++) {
        if (*format == 'O')
            *va_arg(targets, PyObject **) = next++->object;
        else if (*format == 'n')
            *va_arg(targets, Py_ssize_t *) = next++->number;
        else if (*format != '*') /* y* or w* */
            *va_arg(targets, Py_buffer *) = next++->view;
    }
    va_end(targets);
    return 1;
}

static inline PyObject *PyModuleDef_Init(struct PyModuleDef *definition)
{
    (void)definition;
    return &an_object;
}

#endif

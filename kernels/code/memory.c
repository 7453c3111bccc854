/* What compiled kernels call for arrays of their own: Numba's two functions for memory, and no more of them.
   The declarations stand here, so that a compiler is enough and the C library's headers need not be installed. */

void *malloc(unsigned long);
void free(void *);

/* Code reads `data` alone; the layout is Numba's (numba/core/runtime/nrt.cpp, struct MemInfo). */
struct info { unsigned long references; void *end, *end_data, *data; unsigned long size; void *allocator; };

__attribute__((visibility("hidden"))) void *NRT_MemInfo_alloc_aligned(unsigned long size, unsigned align)
{
    unsigned long all = sizeof(struct info) + size + align;
    struct info *info = all < size ? 0 : malloc(all);
    if (!info)
        return 0;
    info->references = 1;
    info->end = info->end_data = info->allocator = 0;
    info->data = (void *)(((unsigned long)(info + 1) + align - 1) / align * align);
    info->size = size;
    return info;
}

__attribute__((visibility("hidden"))) void NRT_MemInfo_call_dtor(struct info *info)
{
    free(info);
}

// The embeddings of a picture as llama.cpp computes them, in a file: int32 tokens, int32 width, float32 data.
#include "llama.h"
#include "mtmd.h"
#include "mtmd-helper.h"
#include <cstdio>
#include <cstring>

int main(int argc, char ** argv) {
    if (argc != 5) return fprintf(stderr, "embeddings MODEL MMPROJ PICTURE OUTPUT\n"), 2;
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    mtmd_context_params params = mtmd_context_params_default();
    params.use_gpu = false;
    mtmd_context * context = model ? mtmd_init_from_file(argv[2], model, params) : nullptr;
    if (!context) return 1;
    mtmd_bitmap * picture = mtmd_helper_bitmap_init_from_file(context, argv[3], false, {}).bitmap;
    if (!picture) return 1;
    const char * marker = mtmd_default_marker();
    mtmd_input_text text = {marker, strlen(marker), true, true};
    mtmd_input_chunks * chunks = mtmd_input_chunks_init();
    const mtmd_bitmap * pictures[] = {picture};
    if (mtmd_tokenize(context, chunks, &text, pictures, 1)) return 1;
    for (size_t i = 0; i < mtmd_input_chunks_size(chunks); i++) {
        const mtmd_input_chunk * chunk = mtmd_input_chunks_get(chunks, i);
        if (mtmd_input_chunk_get_type(chunk) != MTMD_INPUT_CHUNK_TYPE_IMAGE) continue;
        if (mtmd_encode_chunk(context, chunk)) return 1;
        int32_t size[] = {(int32_t) mtmd_input_chunk_get_n_tokens(chunk), llama_model_n_embd(model)};
        FILE * file = fopen(argv[4], "wb");
        if (!file) return 1;
        fwrite(size, sizeof size, 1, file);
        fwrite(mtmd_get_output_embd(context), sizeof(float), (size_t) size[0] * size[1], file);
        fclose(file);
    }
    return 0;
}

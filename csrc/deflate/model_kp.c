#include "model.h"
const ls_model ls_models_kp[] = {{.id = 0}};

def ignored(strategy, config):
    return []
